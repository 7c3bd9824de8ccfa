package audit

import (
	"cmp"
	"context"
	"maps"
	"slices"
)

// openings holds what opens commitments against them: each opening fits its leaf, and one that
// is gone was erased by an entry that names it. The sweeper leaves that to [Verify]: what it
// reads at two moments may have been erased between them.
type openings struct {
	page    map[uint64][]Opening    // of the leaves that are looked at
	missing map[OpeningRef]struct{} // nil: not followed

	opened, erased uint64
}

func (o *openings) read(ctx context.Context, src VerifySource, from, to uint64) error {
	if o.missing == nil {
		return nil
	}
	o.page = map[uint64][]Opening{}
	return src.Openings(ctx, OpeningQuery{From: from, To: to}, func(s StoredOpenings) error {
		o.page[s.Index] = s.Openings
		return nil
	})
}

func (o *openings) leaf(index uint64, l Leaf) error {
	if o.missing == nil {
		return nil
	}
	stored := o.page[index]
	for _, s := range stored {
		if !s.Opens(l) {
			return violate(index, "what is stored to open its %s does not", s.Tag)
		}
	}
	o.opened += uint64(len(stored))
	for _, f := range l.Fields {
		if f.Tag.Committed() && !slices.ContainsFunc(stored, func(s Opening) bool { return s.Tag == f.Tag }) {
			o.missing[OpeningRef{index, f.Tag}] = struct{}{}
		}
	}
	if l.Op != OpErase {
		return nil
	}
	list, _ := l.Get(TagErased)
	refs, err := erasedRefs(list)
	if count, _ := l.Uint(TagCount); err != nil || uint64(len(refs)) != count {
		return violate(index, "its list of erased openings is not one of %d", count)
	}
	for _, r := range refs {
		if _, gone := o.missing[r]; !gone {
			return violate(index, "it says that %s of entry %d was erased, which is there still, or never was", r.Tag, r.Index)
		}
		delete(o.missing, r)
		o.erased++
	}
	return nil
}

func (o *openings) finish(ctx context.Context, src VerifySource, size uint64) error {
	if o.missing == nil {
		return nil
	}
	err := src.Openings(ctx, OpeningQuery{From: size, To: allEntries}, func(s StoredOpenings) error {
		return violate(size, "openings are stored for entry %d, which is not there", s.Index)
	})
	if err != nil || len(o.missing) == 0 {
		return err
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(o.missing)), func(a, b OpeningRef) int { return cmp.Compare(a.Index, b.Index) })
	return violate(first.Index, "what opens its %s is gone, and no entry says that it was erased", first.Tag)
}
