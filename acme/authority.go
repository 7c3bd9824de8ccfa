package acme

import (
	"context"
	"fmt"

	"chancery/ca"
)

// Prepared is the permission to issue one certificate, spent once.
type Prepared interface {
	Serial() string // lower-case hex
}

// FromCA makes package ca's authority an [Authority].
func FromCA(a *ca.Authority) Authority { return authority{a} }

type authority struct{ *ca.Authority }

func (a authority) Prepare(ctx context.Context, r ca.Request) (Prepared, error) {
	p, err := a.Authority.Prepare(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a authority) Issue(ctx context.Context, p Prepared, with ca.Projections) (*ca.Certificate, error) {
	real, ok := p.(*ca.Prepared)
	if !ok {
		return nil, fmt.Errorf("acme: %T was not prepared by this authority", p)
	}
	return a.Authority.Issue(ctx, real, with)
}
