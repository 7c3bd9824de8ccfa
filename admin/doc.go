// Package admin holds who may do what no single person may do.
//
// A sensitive act – a key born, a root signed, a member added – needs a [Grant].
// A grant is a value that only this package can make; it lists its acts, and each
// act can be spent once. The code that carries an act out asks for the grant and
// spends the act first, so that "was this allowed?" is answered by the type.
//
// There is one grant without officers: [Genesis]. It exists only while the ledger
// is empty, and leaf 0 of the ledger records its acts. When a first start was cut
// short, [ResumeGenesis] makes it again from leaf 0, without what is done already.
//
// Officers are people with a P-256 key of their own ([OfficerKey]) whose votes make
// every later grant. [RosterDigest] names them all; it stands in leaf 0.
package admin
