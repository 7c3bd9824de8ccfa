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
// Officers are people with a P-256 key of their own ([OfficerKey]); the [Roster]
// names them and how many must approve, and its digest stands in leaf 0. Every later
// grant comes from the [Board]:
//
//	Propose → Vote … Vote → grant → Executor → result
//
// A [Proposal] is a fixed string of bytes that names ledger, acts, parameters, policy,
// roster, requester and time; each vote signs all of it. Proposal, votes, grant and
// result are leaves, and rows that commit with them. The grant comes into being with
// the one database update that makes a pending proposal approved: of votes that reach
// the quorum at once, one gets past it. Its [Warrant] carries the evidence, so that
// another process can check it without trusting this one.
package admin
