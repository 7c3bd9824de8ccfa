package hsmstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/hsmstore"
	"chancery/test/hsmfault"
)

// quorumCards is the M of the device in these tests.
const quorumCards = 3

// atDevice turns members of a faulty cluster that is not open yet into ones whose SO
// logs in at the device. Their SO PINs are nowhere but in the device.
func (f *faulty) atDevice(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(f.dir, "hsm", name, "so-pin")
		pin, err := hsmstore.FileSecret(file)()
		if err != nil {
			t.Fatal(err)
		}
		must(os.Remove(file))
		f.ctl[name].SetProtectedPath(t, quorumCards, pin)
		for i := range f.members {
			if m := &f.members[i]; m.Name == name {
				m.DeviceSO, m.SOPIN = true, nil
			}
		}
	}
}

// bearing bears a key that goes to both members; the channel gives how it ended.
func (f *faulty) bearing(ctx context.Context, name string) <-chan error {
	spec := hsmstore.KeySpec{Name: name, Purpose: audit.PurposeOCSP, Algorithm: "P-256"}
	ended := make(chan error, 1)
	go func() {
		_, err := f.store.GenerateKey(ctx, granting(spec.Act()), spec)
		ended <- err
	}()
	return ended
}

// waiting are the members that wait at the device now.
func (f *faulty) waiting() (names []string) {
	for _, one := range f.store.Collecting() {
		if one.Device {
			names = append(names, one.Member)
		}
	}
	return names
}

// soLogins are those that reached any token.
func (f *faulty) soLogins() (n uint64) {
	for _, ctl := range f.ctl {
		n += ctl.SOLogins()
	}
	return n
}

// A key is born on one member and copied to the other. Whose SO is opened by the
// vendor's quorum waits for it, while others sign.
func TestVendorQuorum(t *testing.T) {
	for what, members := range map[string][]string{"first": {"m1"}, "second": {"m2"}, "both": {"m1", "m2"}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := copyFaulty(t)
			f.atDevice(t, members...)
			f.start(t)
			issuing := f.key(t, "issuing")
			ended, seen := f.bearing(t.Context(), "quorum"), map[string]bool{}
			for range members { // the giving one first, then the other
				var one hsmstore.Collection
				until(t, "a member to wait at the device", func() bool {
					list := f.store.Collecting()
					if len(list) == 1 {
						one = list[0]
					}
					return len(list) == 1 && !seen[one.Member]
				})
				seen[one.Member] = true
				ctl, before := f.ctl[one.Member], f.ctl[one.Member].SOLogins()
				if left := time.Until(one.Expires); one.Token == "" || left < 4*time.Minute || left > 5*time.Minute {
					t.Errorf("%+v", one)
				}
				if err := f.store.GiveShare(t.Context(), one.ID, "alice", "x", []byte("x")); !errors.Is(err, hsmstore.ErrNoMember) {
					t.Errorf("a share for a device: %v", err)
				}
				if says := "member " + one.Member + " waits for the vendor's quorum at the device"; !strings.Contains(f.log.String(), says) {
					t.Errorf("the log does not say %q", says)
				}
				ctl.PresentCards(quorumCards - 1)
				for range 20 { // one card short for a while: nothing happens, and others sign
					if err := once(t.Context(), issuing, issue(t, issuing)); err != nil {
						t.Error(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				select {
				case err := <-ended:
					t.Fatalf("ended with %d of %d cards: %v", quorumCards-1, quorumCards, err)
				default:
				}
				if got := f.waiting(); len(got) != 1 || got[0] != one.Member || ctl.SOLogins() != before {
					t.Errorf("%v wait, %d logins with %d of %d cards", got, ctl.SOLogins()-before, quorumCards-1, quorumCards)
				}
				ctl.PresentCards(1)
				until(t, "the SO to be logged in", func() bool { return ctl.SOLogins() == before+1 })
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if got := f.store.Collecting(); len(got) != 0 {
				t.Errorf("%+v still wait", got)
			}
			for _, k := range f.store.Keys() {
				if k.Name == "quorum" && len(k.Ready) != 2 {
					t.Errorf("the key is ready on %v", k.Ready)
				}
			}
			for _, name := range members {
				if n := f.ctl[name].QuorumAsked(); n != 1 {
					t.Errorf("member %s asked for the quorum %d times", name, n)
				}
			}
			f.settled(t)
		})
	}
}

// Who refuses at the device ends the ceremony, and no PIN is tried. So does a server
// that stops. Another ceremony goes on as if nothing had been.
func TestVendorQuorumRefused(t *testing.T) {
	f := copyFaulty(t)
	f.atDevice(t, "m1", "m2")
	f.start(t)
	ended := f.bearing(t.Context(), "refused")
	until(t, "a member to wait at the device", func() bool { return len(f.waiting()) == 1 })
	first := f.waiting()[0]
	f.ctl[first].PresentCards(quorumCards - 1)
	f.ctl[first].RefuseQuorum()
	if err := <-ended; !errors.Is(err, hsmstore.ErrPIN) || !strings.Contains(err.Error(), "member "+first) || !strings.Contains(err.Error(), "refused or broken off at the device") || !strings.Contains(err.Error(), "CKR_FUNCTION_CANCELED") {
		t.Errorf("refused: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = f.bearing(ctx, "stopped")
	until(t, "a member to wait at the device", func() bool { return len(f.waiting()) == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if n := f.soLogins(); n != 0 || len(f.store.Collecting()) != 0 {
		t.Errorf("%d logins, %+v still wait", n, f.store.Collecting())
	}
	for _, name := range []string{"m1", "m2"} {
		if st := f.status(name); !isUp(st) {
			t.Errorf("member %s is %s", name, st.State)
		}
		f.ctl[name].PresentCards(quorumCards)
	}
	if err := <-f.bearing(t.Context(), "refused"); err != nil {
		t.Errorf("with the cards: %v", err)
	}
	f.settled(t)
}

// A device that another try would lock is not asked: a token without a login of its
// own is told apart before.
func TestVendorQuorumNoDevice(t *testing.T) {
	f := copyFaulty(t)
	f.atDevice(t, "m1", "m2")
	for _, ctl := range f.ctl {
		ctl.SetProtectedPath(t, 0, "")
	}
	f.start(t)
	logins := f.ctl["m1"].Count(hsmfault.Login) + f.ctl["m2"].Count(hsmfault.Login)
	err := <-f.bearing(t.Context(), "none")
	if !errors.Is(err, hsmstore.ErrPIN) {
		t.Fatalf("%v", err)
	}
	for _, says := range []string{"ceremony on member m", "serial number", "CKF_PROTECTED_AUTHENTICATION_PATH is not set", "file:PATH"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("the error does not say %q: %v", says, err)
		}
	}
	if n := f.ctl["m1"].Count(hsmfault.Login) + f.ctl["m2"].Count(hsmfault.Login); n != logins || f.soLogins() != 0 {
		t.Errorf("%d logins were tried", n-logins)
	}
	d := hsmstore.Doctor(t.Context(), f.members[0], hsmstore.DoctorOptions{})
	if s, bad := d.Trouble(); !bad || s.Code != "CKF_PROTECTED_AUTHENTICATION_PATH" || !strings.Contains(s.Next, "member m1") {
		t.Errorf("the doctor says %+v", s)
	}
}

// There is no SO PIN that could be split, and a PIN from us does not open the device.
func TestVendorQuorumNoPIN(t *testing.T) {
	f := copyFaulty(t)
	pin, err := f.members[1].SOPIN()
	must(err)
	f.atDevice(t, "m1")
	f.ctl["m2"].SetProtectedPath(t, quorumCards, pin) // the configuration goes on with the file
	_, officers := people(t, 3)
	f.start(t, func(cfg *hsmstore.Config) {
		cfg.Shares, cfg.Rosters = sharesOf{f.db}, rosterOf(officers)
	})
	grant := granting(admin.RotateSOPINAct("m1", 2))
	err = f.store.SplitSOPIN(t.Context(), grant, "m1", 2)
	if !errors.Is(err, hsmstore.ErrStanding) || !strings.Contains(err.Error(), "member m1") || !strings.Contains(err.Error(), "the vendor's tools") {
		t.Errorf("splitting: %v", err)
	}
	if err := grant.Spend(admin.RotateSOPINAct("m1", 2)); err != nil {
		t.Errorf("the grant was spent: %v", err)
	}
	if err := f.store.SplitSOPIN(t.Context(), granting(admin.RotateSOPINAct("m2", 2)), "m2", 2); !errors.Is(err, hsmstore.ErrPIN) {
		t.Errorf("a PIN for a device: %v", err)
	}
	if n := f.soLogins(); n != 0 {
		t.Errorf("%d logins", n)
	}
	both := f.members[1]
	both.DeviceSO = true
	if _, err := f.store.Inspect(t.Context(), both); err == nil || !strings.Contains(err.Error(), "not two of them") {
		t.Errorf("device and file: %v", err)
	}
}
