package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"chancery/admin"
	"chancery/ca"
)

const (
	perPage    = 50
	maxQuery   = 253
	soon       = 14 * 24 * time.Hour // "expires soon", but at most a third of the whole validity
	serialHint = 8                   // fewer hex digits are taken for a part of a name only
)

// certificateRow is a certificate in a list.
type certificateRow struct {
	Serial    string
	Short     string // beginning of the serial
	Name      foreign
	More      int // further names
	State     badge
	Profile   foreign
	Requester foreign
	NotAfter  stamp
}

func (v *view) certificateRow(c *ca.Certificate) certificateRow {
	row := certificateRow{Serial: c.Serial, Short: c.Serial, State: v.stateOf(c), Profile: foreign(c.Profile), Requester: foreign(c.Requester), NotAfter: v.stamp(c.NotAfter)}
	if len(row.Short) > 16 {
		row.Short = row.Short[:16] + "…"
	}
	if len(c.Names) > 0 {
		row.Name, row.More = foreign(c.Names[0].Value), len(c.Names)-1
	}
	return row
}

// certificateRows are the rows of those certificates that one may see.
func (v *view) certificateRows(found []*ca.Certificate) (out []certificateRow) {
	for _, c := range found {
		if v.may(admin.ReadCertificates, admin.Resource{Issuer: c.Issuer, Profile: c.Profile}) {
			out = append(out, v.certificateRow(c))
		}
	}
	return out
}

// stateOf is what a certificate is worth now.
func (v *view) stateOf(c *ca.Certificate) badge {
	left := c.NotAfter.Sub(v.now)
	switch {
	case c.Revoked != nil:
		return v.badge("bad", "state.revoked")
	case left < 0:
		return v.badge("idle", "state.expired")
	case v.now.Before(c.NotBefore):
		return v.badge("idle", "state.notYet")
	case left < min(soon, c.NotAfter.Sub(c.NotBefore)/3):
		return v.badge("warn", "state.expiring")
	}
	return v.badge("ok", "state.valid")
}

// certificatesData is what the list shows.
type certificatesData struct {
	Query   string
	Bad     bool // the query cannot be a part of a name
	Rows    []certificateRow
	Next    uint64 // 0: this is the last page
	Before  uint64
	Certbot string
}

// certificates is GET /console/certificates: keyset pages, newest first.
func (c *Console) certificates(w http.ResponseWriter, r *request) error {
	q := strings.TrimSpace(r.URL.Query().Get("q"))
	d := certificatesData{Query: shown(q, maxQuery), Certbot: c.cfg.CertbotLine}
	if b := r.URL.Query().Get("before"); b != "" {
		var err error
		if d.Before, err = strconv.ParseUint(b, 10, 63); err != nil {
			return failure{status: http.StatusBadRequest, text: "error.page"}
		}
	}
	v := c.view(r, "certificates", "certificates.title", nil)
	found, err := c.search(r.Context(), q, &d)
	if err != nil {
		return err
	}
	d.Rows = v.certificateRows(found)
	v.Data = d
	block := ""
	if r.partial {
		block = "results"
	}
	return c.show(w, http.StatusOK, "certificates", block, v)
}

// search finds by a whole serial, with or without colons, and by a part of a name.
func (c *Console) search(ctx context.Context, q string, d *certificatesData) ([]*ca.Certificate, error) {
	var found []*ca.Certificate
	if serial := serialIn(q); serial != "" && d.Before == 0 {
		f, err := c.cfg.Certificates.Certificate(ctx, serial)
		var refusal *ca.Refusal
		switch {
		case err == nil:
			found = append(found, f)
		case !errors.As(err, &refusal):
			return nil, err
		}
	}
	name, ok := namePart(q)
	if !ok {
		d.Bad = len(found) == 0
		return found, nil
	}
	named, err := c.cfg.Certificates.Certificates(ctx, ca.Query{Before: d.Before, Limit: perPage + 1, Name: name})
	if err != nil {
		return nil, err
	}
	if len(named) > perPage {
		named = named[:perPage]
		d.Next = named[perPage-1].Done
	}
	for _, n := range named {
		if !slices.ContainsFunc(found, func(f *ca.Certificate) bool { return f.Serial == n.Serial }) {
			found = append(found, n)
		}
	}
	return found, nil
}

// serialIn reads a serial as openssl, browsers and logs write it, or "".
func serialIn(q string) string {
	s := strings.ToLower(strings.NewReplacer(":", "", " ", "", "-", "").Replace(q))
	s = strings.TrimPrefix(s, "0x")
	if len(s) < serialHint {
		return ""
	}
	if len(s)%2 == 1 {
		s = "0" + s
	}
	for strings.HasPrefix(s, "00") {
		s = s[2:]
	}
	if !isSerial(s) {
		return ""
	}
	return s
}

// namePart makes what a person types a part of a name as certificates carry it: lower
// case, A-labels for whole international labels (RFC 5891 §4.4).
func namePart(q string) (string, bool) {
	if strings.ContainsFunc(q, func(r rune) bool { return r > '~' }) {
		ascii, err := idna.New(idna.MapForLookup(), idna.Transitional(false)).ToASCII(q)
		if err != nil {
			return "", false
		}
		q = ascii
	}
	if len(q) > maxQuery || strings.ContainsFunc(q, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", false
	}
	return strings.ToLower(q), true
}

// certificateData is what the page of one certificate shows.
type certificateData struct {
	certificateRow
	Names         []name
	Issuer        foreign
	Subject       foreign
	NotBefore     stamp
	Lived         int // percent of the validity that is over
	Key           string
	Signature     string
	SHA256        string
	SPKI          string
	CA            bool // only officers may revoke it
	Revoked       bool
	Reason        string
	RevokedAt     stamp
	Done          uint64
	Origin        foreign
	ProofURL      foreign
	Chain         int
	Text          string // PEM
	Curl          string
	Digest        string // SHA-256 of the DER, as the revocation form carries it
	JustRevoked   bool
	MayRevoke     bool
	Reasons       []reasonOption
	ChosenNothing bool
}

type name struct {
	Kind  foreign
	Value foreign
}

// reasonOption is a reason that may be asked for (RFC 5280 §5.3.1).
type reasonOption struct{ Value, Text string }

// allowedReasons are the reasons in the order of the form.
var allowedReasons = []ca.Reason{ca.KeyCompromise, ca.Superseded, ca.CessationOfOperation, ca.AffiliationChanged, ca.PrivilegeWithdrawn, ca.Unspecified}

// load finds the certificate that the path names, for who has a permission on it.
func (c *Console) load(ctx context.Context, r *request, may admin.Permission) (*ca.Certificate, error) {
	serial := r.PathValue("serial")
	if !isSerial(serial) {
		return nil, failure{status: http.StatusNotFound, text: "error.noCertificate"}
	}
	found, err := c.cfg.Certificates.Certificate(ctx, serial)
	if err == nil && !r.session.who.May(may, admin.Resource{Issuer: found.Issuer, Profile: found.Profile}) {
		return nil, c.forbidden(r, may)
	}
	return found, err
}

func (v *view) certificateData(c *ca.Certificate, publicURL string) (certificateData, error) {
	x, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return certificateData{}, fmt.Errorf("reading stored certificate %s: %w", c.Serial, err)
	}
	sum, spki := sha256.Sum256(c.DER), sha256.Sum256(x.RawSubjectPublicKeyInfo)
	d := certificateData{
		certificateRow: v.certificateRow(c), Issuer: foreign(c.Issuer), Subject: foreign(x.Subject.String()), NotBefore: v.stamp(c.NotBefore),
		Key: keyText(x.PublicKey), Signature: x.SignatureAlgorithm.String(), SHA256: pairs(sum[:]), SPKI: hex.EncodeToString(spki[:]), CA: x.IsCA,
		Done: c.Done, Origin: foreign(c.Receipt.Origin), ProofURL: foreign(c.Receipt.ProofURL), Chain: len(c.Chain), Text: pemText(c.DER), Digest: hex.EncodeToString(sum[:]),
		Curl: `curl -H "Authorization: Bearer $(cat admin.token)" ` + strings.TrimSuffix(publicURL, "/") + "/api/v1/certificates/" + c.Serial,
	}
	if whole := c.NotAfter.Sub(c.NotBefore); whole > 0 {
		d.Lived = int(min(100, max(0, 100*v.now.Sub(c.NotBefore)/whole)))
	}
	for _, n := range c.Names {
		d.Names = append(d.Names, name{foreign(strings.ToUpper(string(n.Kind))), foreign(n.Value)})
	}
	d.MayRevoke = v.may(admin.RevokeCertificates, admin.Resource{Issuer: c.Issuer, Profile: c.Profile})
	if c.Revoked != nil {
		d.Revoked, d.Reason, d.RevokedAt = true, v.reason(c.Revoked.Reason), v.stamp(c.Revoked.At)
	}
	for _, r := range allowedReasons {
		d.Reasons = append(d.Reasons, reasonOption{r.String(), v.reason(r)})
	}
	return d, nil
}

func (v *view) reason(r ca.Reason) string {
	if key := "reason." + r.String(); v.Lang.has(key) {
		return v.Lang.text(key)
	}
	return r.String()
}

// pairs writes a fingerprint as openssl does.
func pairs(b []byte) string {
	out := make([]string, len(b))
	for i, c := range b {
		out[i] = fmt.Sprintf("%02X", c)
	}
	return strings.Join(out, ":")
}

func pemText(ders ...[]byte) string {
	var b bytes.Buffer
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a bytes.Buffer takes everything
	}
	return b.String()
}

// certificate is GET /console/certificates/{serial}.
func (c *Console) certificate(w http.ResponseWriter, r *request) error {
	found, err := c.load(r.Context(), r, admin.ReadCertificates)
	if err != nil {
		return err
	}
	v := c.view(r, "certificates", "certificate.title", nil)
	d, err := v.certificateData(found, c.cfg.PublicURL)
	if err != nil {
		return err
	}
	d.JustRevoked = d.Revoked && r.URL.Query().Get("done") == "revoked"
	v.Data = d
	return c.show(w, http.StatusOK, "certificate", "", v)
}

// revokePage is GET /console/certificates/{serial}/revoke: it changes nothing, but
// shows what would be revoked.
func (c *Console) revokePage(w http.ResponseWriter, r *request) error {
	found, err := c.load(r.Context(), r, admin.RevokeCertificates)
	if err != nil {
		return err
	}
	return c.showRevoke(w, r, http.StatusOK, found, false)
}

func (c *Console) showRevoke(w http.ResponseWriter, r *request, status int, found *ca.Certificate, chosenNothing bool) error {
	v := c.view(r, "certificates", "revoke.title", nil)
	d, err := v.certificateData(found, c.cfg.PublicURL)
	if err != nil {
		return err
	}
	if d.Revoked {
		return redirect(w, url.Certificate(found.Serial))
	}
	d.ChosenNothing = chosenNothing
	v.Data = d
	return c.show(w, status, "revoke", "", v)
}

// revoke is POST /console/certificates/{serial}/revoke. The form says which
// certificate the person saw, by serial and by digest; both must be the one that the
// path names, so that a page cannot show one and revoke another. Once begun, it goes
// on when the browser hangs up.
func (c *Console) revoke(w http.ResponseWriter, r *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actTime)
	defer cancel()
	found, err := c.load(ctx, r, admin.RevokeCertificates)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(found.DER); r.form.Get("serial") != found.Serial || r.form.Get("digest") != hex.EncodeToString(sum[:]) {
		return failure{status: http.StatusConflict, text: "error.notShown"}
	}
	if x, err := x509.ParseCertificate(found.DER); err != nil {
		return fmt.Errorf("reading stored certificate %s: %w", found.Serial, err)
	} else if x.IsCA {
		return failure{status: http.StatusForbidden, text: "error.needsOfficers"}
	}
	i := slices.IndexFunc(allowedReasons, func(a ca.Reason) bool { return a.String() == r.form.Get("reason") })
	if i < 0 {
		return c.showRevoke(w, r, http.StatusUnprocessableEntity, found, true)
	}
	err = c.cfg.Certificates.Revoke(ctx, ca.RevokeRequest{Issuer: found.Issuer, Serial: found.Serial, Reason: allowedReasons[i], Requester: r.session.who.Requester(), Client: r.client()})
	var refusal *ca.Refusal
	if errors.As(err, &refusal) && refusal.Code == ca.AlreadyRevoked {
		return redirect(w, url.Certificate(found.Serial))
	}
	if err != nil {
		return err
	}
	c.log.Info("certificate revoked at the console", "id", r.id, "serial", found.Serial, "reason", allowedReasons[i], "remote", r.address())
	return redirect(w, url.Certificate(found.Serial).with("done", "revoked"))
}

// certificatePEM is GET /console/certificates/{serial}/certificate.pem.
func (c *Console) certificatePEM(w http.ResponseWriter, r *request) error {
	found, err := c.load(r.Context(), r, admin.ReadCertificates)
	if err != nil {
		return err
	}
	return download(w, "application/x-pem-file", found.Serial+".pem", []byte(pemText(found.DER)))
}

// chainPEM is GET /console/certificates/{serial}/chain.pem: the certificate and what
// is above it without the root, as servers want it (RFC 8446 §4.4.2).
func (c *Console) chainPEM(w http.ResponseWriter, r *request) error {
	found, err := c.load(r.Context(), r, admin.ReadCertificates)
	if err != nil {
		return err
	}
	return download(w, "application/x-pem-file", found.Serial+"-chain.pem", []byte(pemText(append([][]byte{found.DER}, found.Chain...)...)))
}

// certificateDER is GET /console/certificates/{serial}/certificate.cer (RFC 5280 §4.2.1.13).
func (c *Console) certificateDER(w http.ResponseWriter, r *request) error {
	found, err := c.load(r.Context(), r, admin.ReadCertificates)
	if err != nil {
		return err
	}
	return download(w, "application/pkix-cert", found.Serial+".cer", found.DER)
}

// download sends a file under a name made of a serial or an index (RFC 6266).
func download(w http.ResponseWriter, kind, file string, data []byte) error {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", `attachment; filename="`+file+`"`)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.Write(data) // an error means that the browser went away
	return nil
}
