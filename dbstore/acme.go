package dbstore

import (
	"context"
	"encoding/json/v2"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/acme"
	"chancery/audit"
	"chancery/ca"
)

var _ acme.Storage = (*Store)(nil)

// applyACME carries out the projections of package acme. Each is a few statements by
// primary key; the WHERE clauses are the compare of its compare-and-swap.
func (t *tx) applyACME(p audit.Projection) (handled bool, err error) {
	switch p := p.(type) {
	case acme.CreateAccount:
		err = t.createAccount(p.Account)
	case acme.UpdateContact:
		err = t.cas("UPDATE acme_account SET contact = ? WHERE id = ? AND status = 'valid'", toJSON(p.Contact), p.ID)
	case acme.DeactivateAccount:
		err = t.cas("UPDATE acme_account SET status = 'deactivated' WHERE id = ? AND status = 'valid'", p.ID)
	case acme.ChangeAccountKey:
		err = t.cas("UPDATE acme_account SET thumbprint = ?, jwk = ? WHERE id = ? AND thumbprint = ? AND status = 'valid'",
			p.Thumbprint, p.JWK, p.ID, p.Old)
	case acme.CreateOrder:
		err = t.createOrder(p)
	case acme.PurgeOrders:
		err = t.purgeOrders(p)
	case acme.ChallengeProcessing:
		err = t.cas(`UPDATE acme_challenge SET status = 'processing' WHERE id = ? AND authz = ? AND status = 'pending'
			AND EXISTS (SELECT 1 FROM acme_authz a WHERE a.id = ? AND a.status = 'pending' AND a.expires > ?)
			AND NOT EXISTS (SELECT 1 FROM acme_challenge c WHERE c.authz = ? AND c.status = 'processing')`,
			p.ID, p.Authz, p.Authz, micros(p.Now), p.Authz)
	case acme.ChallengeValid:
		err = t.challengeValid(p)
	case acme.ChallengeInvalid:
		err = t.challengeInvalid(p)
	case acme.DeactivateAuthz:
		err = t.deactivateAuthz(p)
	case acme.OrderProcessing:
		err = t.orderProcessing(p)
	case acme.OrderValid:
		err = t.cas("UPDATE acme_order SET status = 'valid', csr = NULL WHERE id = ? AND status = 'processing' AND serial = ?", p.ID, p.Serial)
	case acme.OrderInvalid:
		err = t.cas("UPDATE acme_order SET status = 'invalid', error = ?, csr = NULL WHERE id = ? AND status = 'processing' AND serial = ?",
			toJSON(p.Error), p.ID, p.Serial)
	default:
		return false, nil
	}
	return true, err
}

func (t *tx) createAccount(a acme.Account) error {
	agreed := 0
	if a.TermsAgreed {
		agreed = 1
	}
	_, err := t.exec("INSERT INTO acme_account (id, thumbprint, jwk, contact, status, terms_agreed, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
		a.ID, a.Thumbprint, a.JWK, toJSON(a.Contact), string(a.Status), agreed, micros(a.Created))
	return err
}

// openOrders are those that the partial index acme_order_open has.
const openOrders = "FROM acme_order WHERE account = ? AND status IN ('pending', 'ready') AND expires > ?"

// room refuses an account that has too many open orders, or too many names in them. It
// reads the index alone, and at most as many entries of it as are allowed. An id has 22
// characters, and a comma is between two.
func (t *tx) room(o acme.Order, most int) error {
	var n, names int
	var first int64
	err := t.row([]any{&n, &names, &first}, "SELECT count(*), CAST(coalesce(sum(len + 1), 0) / 23 AS BIGINT), coalesce(min(expires), 0) FROM (SELECT expires, length(authzs) AS len "+openOrders+" ORDER BY expires LIMIT ?) AS open",
		o.Account, micros(o.Created), most)
	if err == nil && n > 0 && (n >= most || names+len(o.Names) > most*acme.NamesPerOpen) {
		return &acme.TooManyOrders{Until: fromMicros(first)}
	}
	return err
}

func (t *tx) createOrder(p acme.CreateOrder) error {
	o := p.Order
	if p.MaxOpen > 0 {
		if err := t.room(o, p.MaxOpen); err != nil {
			return err
		}
	}
	n, err := t.exec(`INSERT INTO acme_order (id, account, status, names, authzs, created, expires, serial, error)
		SELECT ?, id, ?, ?, ?, ?, ?, '', '' FROM acme_account WHERE id = ? AND status = 'valid'`,
		o.ID, string(o.Status), joinNames(o.Names), strings.Join(o.Authzs, ","), micros(o.Created), micros(o.Expires), o.Account)
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("account is not valid: %w", audit.ErrConflict)
	}
	fresh := make(map[string]bool, len(p.New))
	for _, a := range p.New {
		fresh[a.ID] = true
		if err := t.createAuthz(a); err != nil {
			return err
		}
	}
	for _, id := range o.Authzs {
		if !fresh[id] {
			var one int
			err := t.row([]any{&one}, "SELECT 1 FROM acme_authz WHERE id = ? AND account = ? AND status = 'valid' AND expires > ?", id, o.Account, micros(o.Expires))
			if errors.Is(err, audit.ErrNotFound) {
				return fmt.Errorf("authorization is not valid: %w", audit.ErrConflict)
			}
			if err != nil {
				return err
			}
		}
		if _, err := t.exec("INSERT INTO acme_order_authz (order_id, authz) VALUES (?, ?)", o.ID, id); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) createAuthz(a acme.Authz) error {
	if _, err := t.exec("INSERT INTO acme_authz (id, account, name, status, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
		a.ID, a.Account, a.Name.String(), string(a.Status), micros(a.Created), micros(a.Expires)); err != nil {
		return err
	}
	for _, c := range a.Challenges {
		if _, err := t.exec("INSERT INTO acme_challenge (id, authz, type, token, status, validated, error) VALUES (?, ?, ?, ?, ?, 0, '')",
			c.ID, a.ID, c.Type, c.Token, string(c.Status)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) purgeOrders(p acme.PurgeOrders) error {
	for _, id := range p.IDs {
		n, err := t.exec("DELETE FROM acme_order WHERE id = ? AND status IN ('pending', 'ready', 'invalid') AND expires < ?", id, micros(p.Before))
		if err != nil {
			return err
		}
		if n == 1 {
			if err := t.purgeAuthzs(id, micros(p.Now)); err != nil {
				return err
			}
		}
	}
	return nil
}

// purgeAuthzs deletes the expired authorizations that no order but this one needs.
func (t *tx) purgeAuthzs(order string, now int64) error {
	for _, q := range []struct {
		query string
		args  []any
	}{
		{"DELETE FROM acme_challenge WHERE authz IN (SELECT a.id " + lastNeeded + ")", []any{order, now}},
		{"DELETE FROM acme_authz WHERE id IN (SELECT a.id " + lastNeeded + ")", []any{order, now}},
		{"DELETE FROM acme_order_authz WHERE order_id = ?", []any{order}},
	} {
		if _, err := t.exec(q.query, q.args...); err != nil {
			return err
		}
	}
	return nil
}

const lastNeeded = `FROM acme_order_authz oa JOIN acme_authz a ON a.id = oa.authz WHERE oa.order_id = ? AND a.expires < ?
	AND NOT EXISTS (SELECT 1 FROM acme_order_authz other WHERE other.authz = oa.authz AND other.order_id <> oa.order_id)`

func (t *tx) challengeValid(p acme.ChallengeValid) error {
	if err := t.cas("UPDATE acme_challenge SET status = 'valid', validated = ? WHERE id = ? AND authz = ? AND status = 'processing'", micros(p.Validated), p.ID, p.Authz); err != nil {
		return err
	}
	if err := t.cas("UPDATE acme_authz SET status = 'valid', expires = ? WHERE id = ? AND status = 'pending'", micros(p.Expires), p.Authz); err != nil {
		return err
	}
	_, err := t.exec(`UPDATE acme_order SET status = 'ready'
		WHERE id IN (SELECT order_id FROM acme_order_authz WHERE authz = ?) AND status = 'pending'
		AND NOT EXISTS (SELECT 1 FROM acme_order_authz oa JOIN acme_authz a ON a.id = oa.authz WHERE oa.order_id = acme_order.id AND a.status <> 'valid')`, p.Authz)
	return err
}

// failOrders ends the orders that need an authorization which is lost.
func (t *tx) failOrders(authz string, why *acme.Problem) error {
	_, err := t.exec(`UPDATE acme_order SET status = 'invalid', error = ?
		WHERE id IN (SELECT order_id FROM acme_order_authz WHERE authz = ?) AND status IN ('pending', 'ready')`, toJSON(why), authz)
	return err
}

func (t *tx) challengeInvalid(p acme.ChallengeInvalid) error {
	if err := t.cas("UPDATE acme_challenge SET status = 'invalid', error = ? WHERE id = ? AND authz = ? AND status = 'processing'", toJSON(p.Error), p.ID, p.Authz); err != nil {
		return err
	}
	if err := t.cas("UPDATE acme_authz SET status = 'invalid' WHERE id = ? AND status = 'pending'", p.Authz); err != nil {
		return err
	}
	return t.failOrders(p.Authz, p.Error)
}

func (t *tx) deactivateAuthz(p acme.DeactivateAuthz) error {
	if err := t.cas("UPDATE acme_authz SET status = 'deactivated' WHERE id = ? AND account = ? AND status IN ('pending', 'valid')", p.ID, p.Account); err != nil {
		return err
	}
	if _, err := t.exec("UPDATE acme_challenge SET status = 'invalid' WHERE authz = ? AND status IN ('pending', 'processing')", p.ID); err != nil {
		return err
	}
	return t.failOrders(p.ID, p.Error)
}

// entitled: the account is valid, and so is its authorization for each name, now.
const entitled = ` AND EXISTS (SELECT 1 FROM acme_account c WHERE c.id = acme_order.account AND c.status = 'valid')
	AND NOT EXISTS (SELECT 1 FROM acme_order_authz oa JOIN acme_authz a ON a.id = oa.authz
		WHERE oa.order_id = acme_order.id AND (a.status <> 'valid' OR a.expires <= ? OR a.account <> acme_order.account))`

func (t *tx) orderProcessing(p acme.OrderProcessing) error {
	now := micros(p.Now)
	if p.Old == "" {
		return t.cas("UPDATE acme_order SET status = 'processing', csr = ?, serial = ? WHERE id = ? AND account = ? AND status = 'ready' AND expires > ?"+entitled,
			p.CSR, p.Serial, p.ID, p.Account, now, now)
	}
	return t.cas("UPDATE acme_order SET csr = ?, serial = ? WHERE id = ? AND account = ? AND status = 'processing' AND serial = ?"+entitled,
		p.CSR, p.Serial, p.ID, p.Account, p.Old, now)
}

// micros is a time as it is stored; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("dbstore: %T cannot be encoded: %v", v, err))
	}
	return string(b)
}

func toProblem(s string) *acme.Problem {
	if s == "" {
		return nil
	}
	p := new(acme.Problem)
	if json.Unmarshal([]byte(s), p) != nil {
		return nil
	}
	return p
}

type acmeAccountRow struct {
	ID          string `gorm:"primaryKey"`
	Thumbprint  string
	JWK         []byte `gorm:"column:jwk"`
	Contact     string
	Status      string
	TermsAgreed int
	Created     int64
}

func (acmeAccountRow) TableName() string { return "acme_account" }

func (r acmeAccountRow) account() (acme.Account, error) {
	a := acme.Account{ID: r.ID, Thumbprint: r.Thumbprint, JWK: r.JWK, Status: acme.Status(r.Status), TermsAgreed: r.TermsAgreed == 1, Created: fromMicros(r.Created)}
	if err := json.Unmarshal([]byte(r.Contact), &a.Contact); err != nil {
		return a, fmt.Errorf("account %s: contact: %w", r.ID, err)
	}
	return a, nil
}

type acmeOrderRow struct {
	ID      string `gorm:"primaryKey"`
	Account string
	Status  string
	Names   string
	Authzs  string
	Created int64
	Expires int64
	CSR     []byte `gorm:"column:csr"`
	Serial  string
	Error   string
}

func (acmeOrderRow) TableName() string { return "acme_order" }

func (r acmeOrderRow) order() acme.Order {
	return acme.Order{ID: r.ID, Account: r.Account, Status: acme.Status(r.Status), Names: splitNames(r.Names), Authzs: strings.Split(r.Authzs, ","),
		Created: fromMicros(r.Created), Expires: fromMicros(r.Expires), CSR: r.CSR, Serial: r.Serial, Error: toProblem(r.Error)}
}

type acmeAuthzRow struct {
	ID      string `gorm:"primaryKey"`
	Account string
	Name    string
	Status  string
	Created int64
	Expires int64
}

func (acmeAuthzRow) TableName() string { return "acme_authz" }

func (r acmeAuthzRow) authz() acme.Authz {
	kind, value, _ := strings.Cut(r.Name, ":")
	return acme.Authz{ID: r.ID, Account: r.Account, Name: ca.Name{Kind: ca.NameKind(kind), Value: value}, Status: acme.Status(r.Status),
		Created: fromMicros(r.Created), Expires: fromMicros(r.Expires)}
}

type acmeChallengeRow struct {
	ID        string `gorm:"primaryKey"`
	Authz     string
	Type      string
	Token     string
	Status    string
	Validated int64
	Error     string
}

func (acmeChallengeRow) TableName() string { return "acme_challenge" }

func (r acmeChallengeRow) challenge() acme.Challenge {
	return acme.Challenge{ID: r.ID, Authz: r.Authz, Type: r.Type, Token: r.Token, Status: acme.Status(r.Status), Validated: fromMicros(r.Validated), Error: toProblem(r.Error)}
}

// ACMEAccount implements [acme.Storage].
func (s *Store) ACMEAccount(ctx context.Context, id string) (acme.Account, error) {
	return s.acmeAccount(ctx, "id = ?", id)
}

// ACMEAccountByKey implements [acme.Storage].
func (s *Store) ACMEAccountByKey(ctx context.Context, thumbprint string) (acme.Account, error) {
	return s.acmeAccount(ctx, "thumbprint = ?", thumbprint)
}

func (s *Store) acmeAccount(ctx context.Context, where string, arg any) (acme.Account, error) {
	var r acmeAccountRow
	if err := s.ro.WithContext(ctx).Where(where, arg).Take(&r).Error; err != nil {
		return acme.Account{}, mapError(err)
	}
	return r.account()
}

// ACMEOrder implements [acme.Storage].
func (s *Store) ACMEOrder(ctx context.Context, id string) (acme.Order, error) {
	var r acmeOrderRow
	if err := s.ro.WithContext(ctx).Where("id = ?", id).Take(&r).Error; err != nil {
		return acme.Order{}, mapError(err)
	}
	return r.order(), nil
}

func acmeOrders(rows []acmeOrderRow) []acme.Order {
	out := make([]acme.Order, len(rows))
	for i, r := range rows {
		out[i] = r.order()
	}
	return out
}

// ACMEOrders implements [acme.Storage].
func (s *Store) ACMEOrders(ctx context.Context, account string, after acme.Cursor, limit int) ([]acme.Order, error) {
	q := s.ro.WithContext(ctx).Omit("csr").Where("account = ? AND status <> 'invalid'", account)
	if after.ID != "" {
		at := micros(after.Created)
		q = q.Where("created <= ? AND (created < ? OR id < ?)", at, at, after.ID)
	}
	var rows []acmeOrderRow
	err := q.Order("created DESC, id DESC").Limit(limit).Find(&rows).Error
	return acmeOrders(rows), mapError(err)
}

// ACMEStaleOrders implements [acme.Storage].
func (s *Store) ACMEStaleOrders(ctx context.Context, before time.Time, limit int) ([]string, error) {
	var ids []string
	err := s.ro.WithContext(ctx).Model(&acmeOrderRow{}).Where("status IN ('pending', 'ready', 'invalid') AND expires < ?", micros(before)).
		Order("expires").Limit(limit).Pluck("id", &ids).Error
	return ids, mapError(err)
}

// ACMEProcessingOrders implements [acme.Storage].
func (s *Store) ACMEProcessingOrders(ctx context.Context, limit int) ([]acme.Order, error) {
	var rows []acmeOrderRow
	if err := s.ro.WithContext(ctx).Where("status = 'processing'").Order("created").Limit(limit).Find(&rows).Error; err != nil || len(rows) == 0 {
		return nil, mapError(err)
	}
	// Read after the orders: an attempt of theirs that is not open now has ended.
	open, err := s.openSerials(ctx)
	if err != nil {
		return nil, err
	}
	return acmeOrders(slices.DeleteFunc(rows, func(r acmeOrderRow) bool { return open[r.Serial] })), nil
}

// ACMEAuthzs implements [acme.Storage].
func (s *Store) ACMEAuthzs(ctx context.Context, ids ...string) ([]acme.Authz, error) {
	var rows []acmeAuthzRow
	if err := s.ro.WithContext(ctx).Where("id IN ?", ids).Find(&rows).Error; err != nil {
		return nil, mapError(err)
	}
	var challenges []acmeChallengeRow
	if err := s.ro.WithContext(ctx).Where("authz IN ?", ids).Order("type").Find(&challenges).Error; err != nil {
		return nil, mapError(err)
	}
	byID := make(map[string]acme.Authz, len(rows))
	for _, r := range rows {
		byID[r.ID] = r.authz()
	}
	for _, c := range challenges {
		a := byID[c.Authz]
		a.Challenges = append(a.Challenges, c.challenge())
		byID[c.Authz] = a
	}
	out := make([]acme.Authz, 0, len(ids))
	for _, id := range ids {
		a, ok := byID[id]
		if !ok {
			return nil, fmt.Errorf("authorization: %w", audit.ErrNotFound)
		}
		out = append(out, a)
	}
	return out, nil
}

// ACMEAuthzByChallenge implements [acme.Storage].
func (s *Store) ACMEAuthzByChallenge(ctx context.Context, challenge string) (acme.Authz, error) {
	var c acmeChallengeRow
	if err := s.ro.WithContext(ctx).Where("id = ?", challenge).Take(&c).Error; err != nil {
		return acme.Authz{}, mapError(err)
	}
	list, err := s.ACMEAuthzs(ctx, c.Authz)
	if err != nil {
		return acme.Authz{}, err
	}
	return list[0], nil
}

// ACMEValidAuthz implements [acme.Storage].
func (s *Store) ACMEValidAuthz(ctx context.Context, account string, name ca.Name, until time.Time) (acme.Authz, error) {
	var r acmeAuthzRow
	err := s.ro.WithContext(ctx).Where("account = ? AND name = ? AND expires > ? AND status = 'valid'", account, name.String(), micros(until)).
		Order("expires DESC").Take(&r).Error
	if err != nil {
		return acme.Authz{}, mapError(err)
	}
	return r.authz(), nil
}

// ACMEProcessingChallenges implements [acme.Storage].
func (s *Store) ACMEProcessingChallenges(ctx context.Context, limit int) ([]acme.PendingValidation, error) {
	var rows []struct {
		Challenge  acmeChallengeRow `gorm:"embedded"`
		Account    string
		Thumbprint string
		Name       string
	}
	err := s.ro.WithContext(ctx).Table("acme_challenge").
		Select("acme_challenge.*, acme_authz.account, acme_authz.name, acme_account.thumbprint").
		Joins("JOIN acme_authz ON acme_authz.id = acme_challenge.authz").
		Joins("JOIN acme_account ON acme_account.id = acme_authz.account").
		Where("acme_challenge.status = 'processing'").Order("acme_challenge.id").Limit(limit).Scan(&rows).Error
	var out []acme.PendingValidation
	for _, r := range rows {
		kind, value, _ := strings.Cut(r.Name, ":")
		out = append(out, acme.PendingValidation{Challenge: r.Challenge.challenge(), Account: r.Account, Thumbprint: r.Thumbprint, Name: ca.Name{Kind: ca.NameKind(kind), Value: value}})
	}
	return out, mapError(err)
}
