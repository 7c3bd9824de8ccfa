package hsmstore

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// A vendor can keep the SO's login for itself: M of N cards or keys are given at the
// device (Luna's PED, operator cards of a Security World), and no PIN exists that we
// could hold. Such a token shows CKF_PROTECTED_AUTHENTICATION_PATH (PKCS#11 v2.40
// §3.2, CK_TOKEN_INFO). A member with so_pin: device has its SO logged in that way, in
// ceremonies only; the ceremony process tells the store when it begins and ends to wait.

// deviceTimeout is how long persons may take for the quorum of one login: cards lie in
// safes. Nobody but the ceremony waits meanwhile.
const deviceTimeout = 5 * time.Minute

// statusWaits is a frame with id 0 of a ceremony process; payload: JSON deviceWait.
const statusWaits byte = 6

// deviceWait is the beginning or the end of a wait.
type deviceWait struct {
	Token   string `json:"token"` // label and serial number
	Waiting bool   `json:"waiting"`
}

// atDevice logs the SO in by the vendor's quorum. A token that would take a PIN instead
// is not asked: some answer a NULL PIN with a try that counts.
func (c *ceremony) atDevice(t *token) error {
	if t.user == pkcs11.CKU_SO {
		return nil
	}
	info, err := t.m.GetTokenInfo(t.slot)
	if err != nil {
		return classify("C_GetTokenInfo", err)
	}
	name := fmt.Sprintf("%s, serial number %s", info.Label, info.SerialNumber)
	if info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH == 0 {
		return faultf(exitPIN, "%w: so_pin says device, but token %s has no login at the device (CKF_PROTECTED_AUTHENTICATION_PATH is not set); give so_pin as file:PATH or \"shares:\"", ErrPIN, name)
	}
	if err := c.tell(deviceWait{Token: name, Waiting: true}); err != nil {
		return err
	}
	if err := t.loginAtDevice(c.open.Module); err != nil {
		return err
	}
	return c.tell(deviceWait{Token: name})
}

// tell writes to the store between a command and its reply.
func (c *ceremony) tell(w deviceWait) error { return writeJSON(c.conn, 0, statusWaits, w) }

// heard takes in what the process tells of itself while a command runs, and moves the
// command's deadline: while persons are waited for it is theirs.
func (c *ceremonyProcess) heard(payload []byte) {
	var w deviceWait
	if json.Unmarshal(payload, &w) != nil {
		return
	}
	c.waiting = w.Waiting
	limit := ceremonyTimeout
	if w.Waiting {
		limit = deviceTimeout
	}
	_ = c.proc.conn.SetDeadline(time.Now().Add(limit))
	if c.atDevice == nil {
		return
	}
	if w.Waiting {
		c.arrived = c.atDevice(w.Token)
	} else {
		c.stopWaiting()
	}
}

// stopWaiting takes the wait off the list, if there is one.
func (c *ceremonyProcess) stopWaiting() {
	if c.arrived != nil {
		c.arrived()
		c.arrived = nil
	}
}

// waitAtDevice puts a ceremony that waits for the vendor's quorum on the list of
// [Store.Collecting] and tells people of it. done takes it off again.
func (s *Store) waitAtDevice(member, token string) (done func()) {
	s.log.Warn("member "+member+" waits for the vendor's quorum at the device (token "+token+")", "member", member, "at_most", deviceTimeout)
	one := &collection{Collection: Collection{ID: rand.Text(), Member: member, Device: true, Token: token, Key: []byte{}, Sets: []ShareSet{}, Have: []string{}, Expires: time.Now().Add(deviceTimeout)}}
	s.collections.add(one)
	return func() { s.collections.remove(one) }
}

// errDeviceSO is why a SO PIN that does not exist cannot be changed or split.
func errDeviceSO(member string) error {
	return fmt.Errorf("%w: member %s: its SO is opened by the vendor's quorum at the device (so_pin: device), so there is no SO PIN to change or split; change who belongs to the quorum with the vendor's tools", ErrStanding, member)
}
