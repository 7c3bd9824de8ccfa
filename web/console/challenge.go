package console

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"chancery/admin"
	"chancery/audit"
	"chancery/web/console/passkey"
	"chancery/web/console/sessions"
)

// challengeTime is how long a challenge can be answered.
const challengeTime = 2 * time.Minute

// What a challenge is for; one for another purpose is refused.
const (
	toSignIn = "sign-in"
	toStepUp = "step-up " // with the session
	toEnrol  = "enrol "   // with the enrolment
)

// challenge is 16 random octets, the time in seconds at which it ends (u64), and an
// HMAC-SHA-256 over them and the purpose. So any node can check it without having stored it,
// and asking for challenges costs the database nothing. It is longer than the digest that
// passkeys sign to vote: what is signed for the one never counts for the other.
func (c *Console) challenge(purpose string) []byte {
	b := make([]byte, 16, 56)
	rand.Read(b)
	b = binary.BigEndian.AppendUint64(b, uint64(c.now().Add(challengeTime).Unix()))
	return append(b, c.challengeMAC(purpose, b)...)
}

func (c *Console) challengeMAC(purpose string, b []byte) []byte {
	m := hmac.New(sha256.New, c.cfg.Secret)
	fmt.Fprintf(m, "chancery/challenge/v1\n%s\n", purpose)
	m.Write(b)
	return m.Sum(nil)
}

var errChallenge = errors.New("the challenge is not ours, for something else, too old, or was answered before")

// challenged checks that a response is about a challenge of ours that can still be answered.
func (c *Console) challenged(purpose string, response []byte) ([]byte, error) {
	b, err := passkey.Challenge(response)
	if err != nil {
		return nil, err
	}
	if len(b) != 56 || !hmac.Equal(b[24:], c.challengeMAC(purpose, b[:24])) || !c.now().Before(expiryOf(b)) {
		return nil, errChallenge
	}
	return b, nil
}

func expiryOf(challenge []byte) time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(challenge[16:24])), 0)
}

// spend takes a challenge that was answered rightly out of use, on all nodes.
func (c *Console) spend(ctx context.Context, challenge []byte) error {
	err := c.cfg.Sessions.Write(ctx, sessions.Spend{Challenge: sha256.Sum256(challenge), Expires: expiryOf(challenge), At: c.now()})
	if errors.Is(err, audit.ErrExists) {
		return errChallenge
	}
	return err
}

// refusedPasskey is why an assertion was not taken; the person learns only that.
type refusedPasskey struct{ error }

// asserted verifies an assertion over a challenge for a purpose and spends the challenge. A
// *refusedPasskey is the visitor's fault.
func (c *Console) asserted(ctx context.Context, purpose, response string, roster admin.Roster) (admin.Officer, []byte, error) {
	challenge, err := c.challenged(purpose, []byte(response))
	if err != nil {
		return admin.Officer{}, nil, &refusedPasskey{err}
	}
	user, err := c.users(ctx)
	if err != nil {
		return admin.Officer{}, nil, err
	}
	rp := passkey.RP{ID: roster.RPID, Origins: roster.Origins}
	id, err := rp.Signed(challenge, []byte(response), func(credential []byte) (passkey.User, admin.Passkey, bool) {
		o, k, ok := roster.ByPasskey(credential)
		return user(o.Name), k, ok
	})
	if err != nil {
		return admin.Officer{}, nil, &refusedPasskey{err}
	}
	o, _, ok := roster.ByPasskey(id)
	if !ok {
		return o, nil, &refusedPasskey{errors.New("the passkey is nobody's")}
	}
	if err := c.spend(ctx, challenge); errors.Is(err, errChallenge) {
		return o, nil, &refusedPasskey{err}
	} else if err != nil {
		return o, nil, err
	}
	return o, bytes.Clone(id), nil
}

// users makes the user of a name. Its handle says nothing of the person, and differs
// between CAs, since authenticators keep one passkey for each handle.
func (c *Console) users(ctx context.Context) (func(name string) passkey.User, error) {
	terms, err := c.cfg.Board.Terms(ctx)
	return func(name string) passkey.User {
		handle := audit.Digest("user", append(terms.Ledger[:], name...))
		return passkey.User{Handle: handle[:], Name: name}
	}, err
}

// sendJSON answers script.
func sendJSON(w http.ResponseWriter, b []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Write(b) // an error means that the browser went away
	return nil
}
