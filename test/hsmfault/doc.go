// Package hsmfault builds and steers a PKCS#11 module that behaves like a network
// HSM on a bad day, for the tests of package hsmstore.
//
// The module (module.c) delegates every call to a real one, by default SoftHSM, so
// that keys, handles and signatures are real. What it adds is steered at run time
// through a control file that is mapped by the test and by all processes of one
// member: latency, capacity, limits of sessions and throughput, keys that other nodes
// do not have yet, failovers, error codes, crashes, hangs, wrong signatures, a foreign
// or missing token, a broken random number generator. Counters and faults therefore
// outlive the worker that is killed by them.
//
//	ctl := hsmfault.New(t, filepath.Join(t.TempDir(), "m1.control"))
//	m.Module = hsmfault.Build(t)
//	m.Env = append(m.Env, ctl.Env()...)
//	...
//	ctl.FailSign(pkcs11.CKR_DEVICE_ERROR, 1)
//
// Times are those of CLOCK_MONOTONIC. Fields take effect with the next call of the
// module; calls that wait (latency, hang, stall) look again when they wake up.
package hsmfault
