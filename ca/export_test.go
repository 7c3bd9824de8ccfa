package ca

import "crypto/x509"

var (
	NewSerial = newSerial
	StrictDER = strictDER

	NumbersBegin = numbersBegin
)

// TBS are the bytes that Issue will have signed.
func (p *Prepared) TBS() []byte { return p.tbs }

// Reseal seals once more after a change that no check of Prepare would have let through.
func (p *Prepared) Reseal(change func(*x509.Certificate)) error {
	change(p.tmpl)
	return p.seal()
}

// SwapProfile replaces a profile by a changed copy, as a reload would.
func SwapProfile(name string, change func(*Profile)) (restore func()) {
	old := profiles[name]
	p := *old
	change(&p)
	profiles[name] = &p
	return func() { profiles[name] = old }
}

// CSRNames reads a request by profile tls-server.
func CSRNames(der []byte) ([]Name, error) {
	c, err := parseCSR(der, profiles["tls-server"])
	if err != nil {
		return nil, err
	}
	return c.names, nil
}
