//go:build ignore

// hsmfault is a PKCS#11 module that delegates to another one and gives it the
// behaviour of a network HSM, good and bad: latency, capacity, session limits,
// throttling, slow replication of keys, failovers, error codes, crashes, hangs and
// wrong signatures. It is steered while it runs through a control file that all
// processes of one member map, so that faults and counters outlive a process.
//
// Environment:
//   HSMFAULT_MODULE   the real module (default: SoftHSM)
//   HSMFAULT_CONTROL  the control file, made by the Go package beside this file;
//                     without it the module only delegates
//
// The Go package has a struct of the same layout. Both sides hash names and offsets
// of all fields; C_Initialize fails if the hashes differ.

#define _GNU_SOURCE
#include "pkcs11go.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define DEFAULT_MODULE "/usr/lib/softhsm/libsofthsm2.so"

// ---- The control file ------------------------------------------------------

// Functions that are counted one by one and can be made to fail one by one. The
// numbers are part of the control file: the Go package repeats them.
enum function {
	FN_ANY, // every remote call
	FN_OTHER,
	FN_INITIALIZE,
	FN_GET_SLOT_LIST,
	FN_GET_TOKEN_INFO,
	FN_OPEN_SESSION,
	FN_CLOSE_SESSION,
	FN_LOGIN,
	FN_FIND_OBJECTS_INIT,
	FN_FIND_OBJECTS,
	FN_GET_ATTRIBUTE_VALUE,
	FN_CREATE_OBJECT,
	FN_DESTROY_OBJECT,
	FN_GENERATE_KEY,
	FN_GENERATE_KEY_PAIR,
	FN_WRAP_KEY,
	FN_UNWRAP_KEY,
	FN_SIGN_INIT,
	FN_SIGN,
	FN_GENERATE_RANDOM,
	FN_LIMIT = 32
};

enum crash { CRASH_SEGV = 1, CRASH_ABORT };
enum wrong { WRONG_BIT = 1, WRONG_KEY, WRONG_DATA, WRONG_LENGTH };
enum rng { RNG_CONSTANT = 1, RNG_REPEAT };

#define ALWAYS UINT64_MAX // in a field that counts how often a fault still strikes
#define MAX_DATA 128      // octets of a forged entry's data
#define MAX_SIGNATURE 512 // octets; RSA-4096

typedef _Atomic uint64_t word;

// forged says: for exactly this data, return exactly this signature.
struct forged {
	word used; // set last
	word hits;
	word data_len;
	word signature_len;
	unsigned char data[MAX_DATA];
	unsigned char signature[MAX_SIGNATURE];
};

// birth remembers when a token object came to be.
struct birth {
	word identity; // hash of CKA_ID, or of CKA_LABEL where there is none; 0: free
	word born;     // monotonic µs
};

// signer is a key of the token and how often it has signed.
struct signer {
	word identity; // as in struct birth; 0: free
	word count;
};

// user is a process that has sessions open.
struct user {
	word pid;
	word sessions;
};

// CONTROL lists type, name and dimension of all fields, in their order.
#define CONTROL(FIELD)                                                                             \
	FIELD(word, layout, )            /* hash of this list, by the Go side */                       \
	FIELD(word, latency, )           /* µs added to each remote call */                            \
	FIELD(word, service, )           /* µs that one signature occupies the HSM */                  \
	FIELD(word, next_free, )         /* monotonic µs: end of the queue of signatures */            \
	FIELD(word, memo, )              /* answer repeated signatures from memory */                  \
	FIELD(word, lazy_init, )         /* with memo: real C_SignInit only when it is needed */       \
	FIELD(word, session_cap, )       /* sessions of all processes together; 0: no cap */           \
	FIELD(word, throttle, )          /* signatures per second; 0: no throttling */                 \
	FIELD(word, throttle_rv, )       /* what the others get */                                     \
	FIELD(word, throttle_window, )   /* begin in ms << 24 | signatures since */                    \
	FIELD(word, invisible, )         /* µs after its birth in which an object is not there */      \
	FIELD(word, flaky, )             /* µs after its birth in which it is there at times */        \
	FIELD(word, flaky_permille, )    /* how often it is not */                                     \
	FIELD(word, flaky_rolls, )       /* state of the dice */                                       \
	FIELD(word, session_epoch, )     /* a session of an older epoch is dead */                     \
	FIELD(word, session_rv, )        /* what calls on it get */                                    \
	FIELD(word, flight_epoch, )      /* calls that see it change fail */                           \
	FIELD(word, flight_rv, )         /* with this */                                               \
	FIELD(word, stall_until, )       /* monotonic µs: calls wait for it */                         \
	FIELD(word, close_left, )        /* C_Sign calls that first lose all sessions */               \
	FIELD(word, hang, )              /* set of functions that do not return */                     \
	FIELD(word, crash, )             /* enum crash */                                              \
	FIELD(word, crash_function, )                                                                  \
	FIELD(word, crash_left, )                                                                      \
	FIELD(word, wrong, )             /* enum wrong */                                              \
	FIELD(word, wrong_left, )                                                                      \
	FIELD(word, rng, )               /* enum rng */                                                \
	FIELD(word, rng_seed, )          /* the constant octet, or the seed of the repeated stream */  \
	FIELD(word, absent, )            /* the token is not in its slot */                            \
	FIELD(word, no_export, )         /* private keys are never extractable */                      \
	FIELD(word, one_hop, )           /* has CKM_RSA_AES_KEY_WRAP */                                \
	FIELD(word, protected_path, )    /* the SO logs in at the device, by a quorum */               \
	FIELD(word, quorum_needed, )     /* cards that a login of the SO takes */                      \
	FIELD(word, quorum_given, )      /* cards in the device now */                                 \
	FIELD(word, quorum_refused, )    /* logins that persons break off */                           \
	FIELD(word, quorum_asked, )      /* logins that waited for cards so far */                     \
	FIELD(word, so_logins, )         /* C_Login calls of the SO that reached the real module */    \
	FIELD(word, serial_set, )                                                                      \
	FIELD(word, label_set, )                                                                       \
	FIELD(word, hidden_len, )        /* mechanisms that do not exist */                            \
	FIELD(word, births_next, )                                                                     \
	FIELD(word, last_birth, )        /* monotonic µs */                                            \
	FIELD(word, lock, )              /* pid that holds it */                                       \
	FIELD(unsigned char, serial, [16])                                                             \
	FIELD(unsigned char, label, [32])                                                              \
	FIELD(unsigned char, so_pin, [64]) /* which the device enters itself; padded with zeros */    \
	FIELD(word, hidden, [32])                                                                      \
	FIELD(word, counts, [FN_LIMIT])                                                                \
	FIELD(word, fail_rv, [FN_LIMIT])                                                               \
	FIELD(word, fail_left, [FN_LIMIT])                                                             \
	FIELD(struct user, users, [64])                                                                \
	FIELD(struct birth, births, [256])                                                             \
	FIELD(struct forged, forgeries, [64])                                                          \
	FIELD(struct signer, signers, [256])

#define LENGTH(a) (sizeof(a) / sizeof *(a))

struct control {
#define FIELD(type, name, dim) type name dim;
	CONTROL(FIELD)
#undef FIELD
};

static struct control nothing; // a control file that asks for nothing
static struct control *ctl = &nothing;

static uint64_t fnv(uint64_t h, const void *data, size_t n)
{
	for (const unsigned char *p = data; n-- > 0; p++)
		h = (h ^ *p) * 1099511628211ULL;
	return h;
}

#define FNV_BASIS 14695981039346656037ULL

// layout_hash is what the Go side must have computed from its struct.
static uint64_t layout_hash(void)
{
	static const struct { const char *name; size_t offset; } fields[] = {
#define FIELD(type, name, dim) { #name, offsetof(struct control, name) },
		CONTROL(FIELD)
#undef FIELD
		{ "size", sizeof(struct control) },
	};
	uint64_t h = FNV_BASIS;
	for (size_t i = 0; i < LENGTH(fields); i++) {
		char line[64];
		int n = snprintf(line, sizeof line, "%s@%zu\n", fields[i].name, fields[i].offset);
		h = fnv(h, line, (size_t)n);
	}
	return h;
}

// take reports whether a fault that strikes a limited number of times strikes now.
static bool take(word *left)
{
	uint64_t n = atomic_load(left);
	while (n != 0 && n != ALWAYS)
		if (atomic_compare_exchange_weak(left, &n, n - 1))
			return true;
	return n == ALWAYS;
}

static bool alive(uint64_t pid)
{
	return kill((pid_t)pid, 0) == 0 || errno == EPERM;
}

// lock_control serialises the processes of a member. The lock of a process that was
// killed is taken over.
static void lock_control(void)
{
	uint64_t me = (uint64_t)getpid();
	for (unsigned tries = 1;; tries++) {
		uint64_t holder = 0;
		if (atomic_compare_exchange_strong(&ctl->lock, &holder, me))
			return;
		if (tries % 1000 == 0 && holder != me && !alive(holder))
			atomic_compare_exchange_strong(&ctl->lock, &holder, 0);
		sched_yield();
	}
}

static void unlock_control(void) { atomic_store(&ctl->lock, 0); }

// ---- Time ------------------------------------------------------------------

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void sleep_until(uint64_t us)
{
	if (us <= now())
		return; // the system call would cost more than a signature from memory
	struct timespec t = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

// book takes the next free service slot and gives its end: the queue of an HSM
// that signs one after the other, without the CPU time that it would cost here.
static uint64_t book(void)
{
	uint64_t service = atomic_load(&ctl->service), t = now();
	if (service == 0)
		return t;
	uint64_t free_at = atomic_load(&ctl->next_free), end;
	do
		end = (free_at > t ? free_at : t) + service;
	while (!atomic_compare_exchange_weak(&ctl->next_free, &free_at, end));
	return end;
}

// throttled counts a signature in its window of a second.
static bool throttled(void)
{
	uint64_t limit = atomic_load(&ctl->throttle);
	if (limit == 0)
		return false;
	uint64_t ms = now() / 1000, w = atomic_load(&ctl->throttle_window), next;
	do {
		bool fresh = ms >= (w >> 24) + 1000;
		if (!fresh && (w & 0xffffff) >= limit)
			return true;
		next = fresh ? ms << 24 | 1 : w + 1;
	} while (!atomic_compare_exchange_weak(&ctl->throttle_window, &w, next));
	return false;
}

// ---- The real module -------------------------------------------------------

static CK_FUNCTION_LIST *real;

// Calls into the real module share the gate; who closes sessions that other threads
// may be using has it alone. Nothing sleeps inside. A thread never enters twice.
static pthread_rwlock_t gate = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static void real_begin(void) { pthread_rwlock_rdlock(&gate); }
static void real_end(void) { pthread_rwlock_unlock(&gate); }

// REAL calls the real module and gives its answer to the variable rv.
#define REAL(call)            \
	do {                      \
		real_begin();         \
		rv = real->call;      \
		real_end();           \
	} while (0)

// ---- Sessions --------------------------------------------------------------

struct session {
	CK_SESSION_HANDLE handle; // 0: free
	CK_SLOT_ID slot;
	bool dead; // lost by a failover
	// The signing operation.
	bool deferred; // the real C_SignInit is still to be called
	bool flat;     // the mechanism's parameter is kept in param
	CK_MECHANISM_TYPE mechanism;
	CK_OBJECT_HANDLE key;
	uint64_t identity; // of the key
	CK_ULONG param_len;
	unsigned char param[sizeof(CK_RSA_PKCS_PSS_PARAMS)];
};

#define PROBES 64 // places at which a handle can be

static struct session sessions[8192];
static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static word epoch_seen; // session_epoch that this process has lived through
static struct user *self;

// place finds the place of a handle, or with handle 0 a free one near hint.
static struct session *place(CK_SESSION_HANDLE hint, CK_SESSION_HANDLE handle)
{
	for (unsigned i = 0; i < PROBES; i++) {
		struct session *s = &sessions[(hint + i) % LENGTH(sessions)];
		if (s->handle == handle)
			return s;
	}
	return NULL;
}

static struct session *find_session(CK_SESSION_HANDLE handle)
{
	if (handle == 0)
		return NULL;
	pthread_mutex_lock(&sessions_lock);
	struct session *s = place(handle, handle);
	pthread_mutex_unlock(&sessions_lock);
	return s;
}

static void add_session(CK_SESSION_HANDLE handle, CK_SLOT_ID slot)
{
	pthread_mutex_lock(&sessions_lock);
	struct session *s = place(handle, 0);
	if (s == NULL)
		s = &sessions[handle % LENGTH(sessions)]; // all are taken: the oldest is long forgotten
	*s = (struct session){ .handle = handle, .slot = slot };
	pthread_mutex_unlock(&sessions_lock);
}

static void uncount_session(void)
{
	if (self != NULL && atomic_load(&self->sessions) > 0)
		atomic_fetch_sub(&self->sessions, 1);
}

static void forget_session(struct session *s)
{
	pthread_mutex_lock(&sessions_lock);
	if (!s->dead)
		uncount_session();
	s->handle = 0;
	pthread_mutex_unlock(&sessions_lock);
}

#define ALL_SLOTS (~(CK_SLOT_ID)0)

// end_sessions forgets the live sessions of a slot, or with bury keeps their handles
// as dead ones.
static void end_sessions(CK_SLOT_ID slot, bool bury)
{
	pthread_mutex_lock(&sessions_lock);
	for (size_t i = 0; i < LENGTH(sessions); i++) {
		struct session *s = &sessions[i];
		if (s->handle == 0 || s->dead || (slot != ALL_SLOTS && s->slot != slot))
			continue;
		uncount_session();
		if (bury)
			s->dead = true;
		else
			s->handle = 0;
	}
	pthread_mutex_unlock(&sessions_lock);
}

// close_real_sessions closes what the real module has open in all slots; this also
// ends the login. The caller has the gate alone.
static void close_real_sessions(void)
{
	CK_SLOT_ID slots[64];
	CK_ULONG n = LENGTH(slots);
	if (real->C_GetSlotList(CK_TRUE, slots, &n) != CKR_OK)
		return;
	for (CK_ULONG i = 0; i < n; i++)
		real->C_CloseAllSessions(slots[i]);
}

// adopt_epoch makes this process live through a failover that was commanded.
static void adopt_epoch(void)
{
	uint64_t epoch = atomic_load(&ctl->session_epoch);
	if (epoch == atomic_load(&epoch_seen))
		return;
	pthread_rwlock_wrlock(&gate);
	if (epoch != atomic_load(&epoch_seen)) {
		close_real_sessions();
		end_sessions(ALL_SLOTS, true);
		atomic_store(&epoch_seen, epoch);
	}
	pthread_rwlock_unlock(&gate);
}

// lose_sessions closes all sessions without anybody being told.
static void lose_sessions(void)
{
	pthread_rwlock_wrlock(&gate);
	close_real_sessions();
	end_sessions(ALL_SLOTS, false);
	pthread_rwlock_unlock(&gate);
}

// enlist gives this process its entry among the users of the token.
static void enlist(void)
{
	lock_control();
	for (size_t i = 0; i < LENGTH(ctl->users) && self == NULL; i++) {
		struct user *u = &ctl->users[i];
		uint64_t pid = atomic_load(&u->pid);
		if (pid != 0 && pid != (uint64_t)getpid() && alive(pid))
			continue;
		atomic_store(&u->sessions, 0);
		atomic_store(&u->pid, (uint64_t)getpid());
		self = u;
	}
	unlock_control();
}

// reserve_session counts a session that is to be opened, unless the token has all
// that it can hold. Processes that died have none.
static CK_RV reserve_session(void)
{
	if (self == NULL)
		return CKR_OK;
	uint64_t cap = atomic_load(&ctl->session_cap), n = 0;
	lock_control();
	for (size_t i = 0; cap != 0 && i < LENGTH(ctl->users); i++) {
		struct user *u = &ctl->users[i];
		uint64_t pid = atomic_load(&u->pid);
		if (pid != 0 && (u == self || alive(pid)))
			n += atomic_load(&u->sessions);
	}
	CK_RV rv = cap != 0 && n >= cap ? CKR_SESSION_COUNT : CKR_OK;
	if (rv == CKR_OK)
		atomic_fetch_add(&self->sessions, 1);
	unlock_control();
	return rv;
}

// ---- What all calls have in common -------------------------------------------

struct call {
	struct session *session; // NULL: none, or not known here
	uint64_t session_epoch, flight_epoch;
};

static void crash(void)
{
	if (atomic_load(&ctl->crash) == CRASH_ABORT)
		abort();
	static int *volatile nowhere; // volatile, or the compiler puts a trap here
	*nowhere = 1;
}

// travel is the way to the HSM: everything that can delay or end a call before the
// HSM has seen it.
static CK_RV travel(struct call *c, enum function fn)
{
	*c = (struct call){ .session_epoch = atomic_load(&ctl->session_epoch), .flight_epoch = atomic_load(&ctl->flight_epoch) };
	atomic_fetch_add(&ctl->counts[FN_ANY], 1);
	atomic_fetch_add(&ctl->counts[fn], 1);
	while (atomic_load(&ctl->hang) & (1ULL << fn | 1ULL << FN_ANY))
		sleep_until(now() + 1000);
	if (atomic_load(&ctl->crash_function) == fn && take(&ctl->crash_left))
		crash();
	uint64_t latency = atomic_load(&ctl->latency), t = now(), until;
	if (latency != 0)
		sleep_until(t + latency);
	while ((until = atomic_load(&ctl->stall_until)) > now())
		sleep_until(until);
	if (take(&ctl->fail_left[fn]))
		return atomic_load(&ctl->fail_rv[fn]);
	return CKR_OK;
}

// enter begins a call on a slot.
static CK_RV enter(struct call *c, enum function fn)
{
	CK_RV rv = travel(c, fn);
	if (rv == CKR_OK)
		adopt_epoch();
	return rv;
}

// enter_slot begins a call that needs the token in its slot.
static CK_RV enter_slot(struct call *c, enum function fn)
{
	CK_RV rv = enter(c, fn);
	if (rv == CKR_OK && atomic_load(&ctl->absent))
		return CKR_TOKEN_NOT_PRESENT;
	return rv;
}

// known finds the session of a call, and whether it still lives.
static CK_RV known(struct call *c, CK_SESSION_HANDLE handle)
{
	adopt_epoch();
	c->session = find_session(handle);
	return c->session != NULL && c->session->dead ? atomic_load(&ctl->session_rv) : CKR_OK;
}

// enter_session begins a call on a session.
static CK_RV enter_session(struct call *c, enum function fn, CK_SESSION_HANDLE handle)
{
	CK_RV rv = travel(c, fn);
	if (rv != CKR_OK)
		return rv;
	if (atomic_load(&ctl->absent))
		return CKR_DEVICE_REMOVED;
	if (take(&ctl->fail_left[FN_ANY]))
		return atomic_load(&ctl->fail_rv[FN_ANY]);
	return known(c, handle);
}

// leave ends a call: the answer of the real module arrives only if neither the call
// nor its session was lost meanwhile.
static CK_RV leave(const struct call *c, CK_RV rv)
{
	if (c->flight_epoch != atomic_load(&ctl->flight_epoch))
		return atomic_load(&ctl->flight_rv);
	if (c->session != NULL && c->session_epoch != atomic_load(&ctl->session_epoch)) {
		adopt_epoch();
		return c->session->dead ? atomic_load(&ctl->session_rv) : rv;
	}
	return rv;
}

// ---- Replication of keys -----------------------------------------------------

// identify reads what an object is recognised by in all processes; 0: by nothing.
static uint64_t identify(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
	CK_BBOOL token = CK_FALSE;
	unsigned char id[256], label[256];
	CK_ATTRIBUTE as[] = {
		{ CKA_TOKEN, &token, sizeof token },
		{ CKA_ID, id, sizeof id },
		{ CKA_LABEL, label, sizeof label },
	};
	CK_RV rv;
	REAL(C_GetAttributeValue(session, object, as, LENGTH(as))); // data objects have no CKA_ID
	if (rv != CKR_OK && rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_BUFFER_TOO_SMALL)
		return 0;
	if (as[0].ulValueLen != sizeof token || !token)
		return 0;
	for (size_t i = 1; i < LENGTH(as); i++)
		if (as[i].ulValueLen != CK_UNAVAILABLE_INFORMATION && as[i].ulValueLen != 0)
			return fnv(FNV_BASIS + i, as[i].pValue, as[i].ulValueLen);
	return 0;
}

static void record_birth(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
	uint64_t identity = identify(session, object), t = now();
	if (identity == 0)
		return;
	struct birth *b = &ctl->births[atomic_fetch_add(&ctl->births_next, 1) % LENGTH(ctl->births)];
	atomic_store(&b->identity, 0);
	atomic_store(&b->born, t);
	atomic_store(&b->identity, identity);
	atomic_store(&ctl->last_birth, t);
}

// newborn reports whether there is an object that not all nodes have yet.
static bool newborn(void)
{
	uint64_t invisible = atomic_load(&ctl->invisible), flaky = atomic_load(&ctl->flaky);
	uint64_t most = invisible > flaky ? invisible : flaky, last = atomic_load(&ctl->last_birth);
	return most != 0 && last != 0 && now() - last < most;
}

// roll chooses the node for a call: true if it lags behind.
static bool roll(void)
{
	uint64_t p = atomic_load(&ctl->flaky_permille);
	if (p == 0)
		return false;
	uint64_t x = atomic_fetch_add(&ctl->flaky_rolls, 1) * 0x9e3779b97f4a7c15ULL; // splitmix64
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return (x ^ x >> 31) % 1000 < p;
}

// missing reports whether the node that got the call does not have the object yet.
static bool missing(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, bool lagging)
{
	uint64_t identity = identify(session, object);
	if (identity == 0)
		return false;
	uint64_t invisible = atomic_load(&ctl->invisible), flaky = lagging ? atomic_load(&ctl->flaky) : 0, t = now();
	for (size_t i = 0; i < LENGTH(ctl->births); i++) {
		struct birth *b = &ctl->births[i];
		if (atomic_load(&b->identity) != identity)
			continue;
		uint64_t age = t - atomic_load(&b->born);
		if (age < invisible || age < flaky)
			return true;
	}
	return false;
}

// present refuses the handle of an object that is not there yet.
static CK_RV present(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_RV otherwise)
{
	return newborn() && missing(session, object, roll()) ? otherwise : CKR_OK;
}

// ---- Mechanisms and templates --------------------------------------------------

static bool hidden(CK_MECHANISM_TYPE m)
{
	uint64_t n = atomic_load(&ctl->hidden_len);
	for (uint64_t i = 0; i < n && i < LENGTH(ctl->hidden); i++)
		if (atomic_load(&ctl->hidden[i]) == m)
			return true;
	return false;
}

static CK_RV offered(const CK_MECHANISM *m)
{
	return m != NULL && hidden(m->mechanism) ? CKR_MECHANISM_INVALID : CKR_OK;
}

static CK_RV offered_for(CK_SESSION_HANDLE session, const CK_MECHANISM *m, CK_OBJECT_HANDLE key)
{
	CK_RV rv = offered(m);
	return rv != CKR_OK ? rv : present(session, key, CKR_KEY_HANDLE_INVALID);
}

// exportable refuses a template of a private key that could be taken out.
static CK_RV exportable(const CK_ATTRIBUTE *template, CK_ULONG n)
{
	if (!atomic_load(&ctl->no_export))
		return CKR_OK;
	for (CK_ULONG i = 0; i < n; i++)
		if (template[i].type == CKA_EXTRACTABLE && template[i].ulValueLen == sizeof(CK_BBOOL) && *(CK_BBOOL *)template[i].pValue)
			return CKR_TEMPLATE_INCONSISTENT;
	return CKR_OK;
}

// ---- RSA_AES_KEY_WRAP -----------------------------------------------------------

// SoftHSM before 2.7 lacks CKM_RSA_AES_KEY_WRAP (PKCS#11 v2.40 §2.1.21), which vendors'
// HSMs have. It is put together here from what SoftHSM has: an AES key wrapped by
// RSA-OAEP, and the key wrapped by that (RFC 5649). Two things SoftHSM does not allow
// the user are done in advance: the AES key must be trusted, which only the SO can make
// it, so it is made when the SO imports a trusted RSA key; and the CKA_UNWRAP_TEMPLATE
// of a pair must cover the key that comes out, not the AES key on the way, so it is
// kept and enforced here.

#define KWP 0x210AUL // RFC 5649 in SoftHSM

struct hop_source { CK_OBJECT_HANDLE public, aes; };

struct hop_target {
	CK_OBJECT_HANDLE private;
	CK_ULONG n;
	CK_ATTRIBUTE template[16];
	unsigned char values[16][64];
};

static struct hop_source hop_sources[16];
static struct hop_target hop_targets[16];
static unsigned hop_sources_n, hop_targets_n;
static pthread_mutex_t hop_lock = PTHREAD_MUTEX_INITIALIZER;

static const CK_ATTRIBUTE *attribute(const CK_ATTRIBUTE *t, CK_ULONG n, CK_ATTRIBUTE_TYPE type)
{
	for (CK_ULONG i = 0; i < n; i++)
		if (t[i].type == type)
			return &t[i];
	return NULL;
}

// hop_import makes the trusted AES key that goes with an RSA key that the SO trusts.
static void hop_import(CK_SESSION_HANDLE s, const CK_ATTRIBUTE *t, CK_ULONG n, CK_OBJECT_HANDLE public)
{
	const CK_ATTRIBUTE *trusted = attribute(t, n, CKA_TRUSTED), *wraps = attribute(t, n, CKA_WRAP);
	if (!atomic_load(&ctl->one_hop) || trusted == NULL || wraps == NULL || !*(CK_BBOOL *)trusted->pValue || !*(CK_BBOOL *)wraps->pValue)
		return;
	CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
	CK_ULONG len = 32;
	CK_ATTRIBUTE aes[] = {
		{ CKA_TOKEN, &no, sizeof no }, { CKA_PRIVATE, &no, sizeof no }, { CKA_SENSITIVE, &yes, sizeof yes }, { CKA_EXTRACTABLE, &yes, sizeof yes },
		{ CKA_WRAP_WITH_TRUSTED, &yes, sizeof yes }, { CKA_TRUSTED, &yes, sizeof yes }, { CKA_WRAP, &yes, sizeof yes }, { CKA_UNWRAP, &no, sizeof no },
		{ CKA_ENCRYPT, &no, sizeof no }, { CKA_DECRYPT, &no, sizeof no }, { CKA_VALUE_LEN, &len, sizeof len },
	};
	CK_MECHANISM m = { CKM_AES_KEY_GEN, NULL, 0 };
	CK_OBJECT_HANDLE h;
	CK_RV rv;
	REAL(C_GenerateKey(s, &m, aes, LENGTH(aes), &h));
	if (rv != CKR_OK)
		return;
	pthread_mutex_lock(&hop_lock);
	hop_sources[hop_sources_n++ % LENGTH(hop_sources)] = (struct hop_source){ public, h };
	pthread_mutex_unlock(&hop_lock);
}

// hop_keep remembers the unwrap template of a pair and takes it out of the template.
static CK_ULONG hop_keep(CK_ATTRIBUTE *out, const CK_ATTRIBUTE *t, CK_ULONG n, struct hop_target *keep)
{
	CK_ULONG left = 0;
	keep->n = 0;
	for (CK_ULONG i = 0; i < n; i++) {
		if (!atomic_load(&ctl->one_hop) || t[i].type != CKA_UNWRAP_TEMPLATE) {
			out[left++] = t[i];
			continue;
		}
		const CK_ATTRIBUTE *inner = t[i].pValue;
		for (CK_ULONG j = 0; j < t[i].ulValueLen / sizeof *inner && j < LENGTH(keep->template) && inner[j].ulValueLen <= sizeof keep->values[0]; j++) {
			memcpy(keep->values[j], inner[j].pValue, inner[j].ulValueLen);
			keep->template[keep->n++] = (CK_ATTRIBUTE){ inner[j].type, NULL, inner[j].ulValueLen };
		}
	}
	return left;
}

static void hop_note(const struct hop_target *keep, CK_OBJECT_HANDLE private)
{
	if (keep->n == 0)
		return;
	pthread_mutex_lock(&hop_lock);
	struct hop_target *to = &hop_targets[hop_targets_n++ % LENGTH(hop_targets)];
	*to = *keep;
	to->private = private;
	pthread_mutex_unlock(&hop_lock);
}

// hop_allows enforces a kept template.
static CK_RV hop_allows(CK_OBJECT_HANDLE private, const CK_ATTRIBUTE *t, CK_ULONG n)
{
	CK_RV rv = CKR_OK;
	pthread_mutex_lock(&hop_lock);
	for (size_t i = 0; i < LENGTH(hop_targets); i++) {
		if (hop_targets[i].private != private)
			continue;
		for (CK_ULONG j = 0; j < hop_targets[i].n; j++) {
			const CK_ATTRIBUTE *a = attribute(t, n, hop_targets[i].template[j].type);
			if (a == NULL || a->ulValueLen != hop_targets[i].template[j].ulValueLen || memcmp(a->pValue, hop_targets[i].values[j], a->ulValueLen) != 0)
				rv = CKR_TEMPLATE_INCONSISTENT;
		}
	}
	pthread_mutex_unlock(&hop_lock);
	return rv;
}

static CK_RV hop_wrap(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE public, CK_OBJECT_HANDLE key, CK_BYTE_PTR out, CK_ULONG_PTR n)
{
	if (m->ulParameterLen != sizeof(CK_RSA_AES_KEY_WRAP_PARAMS))
		return CKR_MECHANISM_PARAM_INVALID;
	CK_RSA_AES_KEY_WRAP_PARAMS *p = m->pParameter;
	CK_OBJECT_HANDLE aes = 0;
	pthread_mutex_lock(&hop_lock);
	for (size_t i = 0; i < LENGTH(hop_sources); i++)
		if (hop_sources[i].public == public)
			aes = hop_sources[i].aes;
	pthread_mutex_unlock(&hop_lock);
	if (aes == 0)
		return CKR_KEY_NOT_WRAPPABLE; // not trusted
	CK_MECHANISM oaep = { CKM_RSA_PKCS_OAEP, p->pOAEPParams, sizeof *p->pOAEPParams }, kwp = { KWP, NULL, 0 };
	unsigned char first[1024], second[8192];
	CK_ULONG nfirst = sizeof first, nsecond = sizeof second;
	CK_RV rv;
	REAL(C_WrapKey(s, &oaep, public, aes, first, &nfirst));
	if (rv != CKR_OK)
		return rv;
	REAL(C_WrapKey(s, &kwp, aes, key, second, &nsecond));
	if (rv != CKR_OK)
		return rv;
	CK_ULONG room = *n;
	*n = nfirst + nsecond;
	if (out == NULL)
		return CKR_OK;
	if (room < *n)
		return CKR_BUFFER_TOO_SMALL;
	memcpy(out, first, nfirst);
	memcpy(out + nfirst, second, nsecond);
	return CKR_OK;
}

static CK_RV hop_unwrap(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE private, CK_BYTE_PTR in, CK_ULONG n, CK_ATTRIBUTE_PTR t, CK_ULONG nt, CK_OBJECT_HANDLE_PTR key)
{
	if (m->ulParameterLen != sizeof(CK_RSA_AES_KEY_WRAP_PARAMS))
		return CKR_MECHANISM_PARAM_INVALID;
	CK_RSA_AES_KEY_WRAP_PARAMS *p = m->pParameter;
	CK_ATTRIBUTE modulus = { CKA_MODULUS, NULL, 0 };
	CK_RV rv;
	REAL(C_GetAttributeValue(s, private, &modulus, 1));
	if (rv != CKR_OK || n <= modulus.ulValueLen)
		return CKR_WRAPPED_KEY_LEN_RANGE;
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_AES;
	CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
	CK_ATTRIBUTE aes[] = {
		{ CKA_CLASS, &class, sizeof class }, { CKA_KEY_TYPE, &type, sizeof type }, { CKA_TOKEN, &no, sizeof no }, { CKA_PRIVATE, &yes, sizeof yes },
		{ CKA_SENSITIVE, &yes, sizeof yes }, { CKA_EXTRACTABLE, &no, sizeof no }, { CKA_UNWRAP, &yes, sizeof yes }, { CKA_DECRYPT, &no, sizeof no },
	};
	CK_MECHANISM oaep = { CKM_RSA_PKCS_OAEP, p->pOAEPParams, sizeof *p->pOAEPParams }, kwp = { KWP, NULL, 0 };
	CK_OBJECT_HANDLE between;
	REAL(C_UnwrapKey(s, &oaep, private, in, modulus.ulValueLen, aes, LENGTH(aes), &between));
	if (rv != CKR_OK)
		return rv;
	REAL(C_UnwrapKey(s, &kwp, between, in + modulus.ulValueLen, n - modulus.ulValueLen, t, nt, key));
	CK_RV result = rv;
	REAL(C_DestroyObject(s, between));
	return result != CKR_OK ? result : rv;
}

// ---- Signatures from memory ----------------------------------------------------

// memory holds signatures that the real module made in this process.
struct memory {
	uint64_t hash; // of mechanism, parameter, key and data
	CK_ULONG len;
	unsigned char signature[MAX_SIGNATURE];
};

#define MEMORIES 65536

static struct memory *memories;
static pthread_mutex_t memories_lock = PTHREAD_MUTEX_INITIALIZER;

static bool recall(uint64_t hash, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	pthread_mutex_lock(&memories_lock);
	struct memory *m = memories != NULL ? &memories[hash % MEMORIES] : NULL;
	bool hit = m != NULL && m->hash == hash && m->len != 0 && m->len <= *len;
	if (hit) {
		memcpy(sig, m->signature, m->len);
		*len = m->len;
	}
	pthread_mutex_unlock(&memories_lock);
	return hit;
}

static void memorise(uint64_t hash, const unsigned char *sig, CK_ULONG len)
{
	if (len > MAX_SIGNATURE)
		return;
	pthread_mutex_lock(&memories_lock);
	if (memories == NULL)
		memories = calloc(MEMORIES, sizeof *memories);
	if (memories != NULL) {
		struct memory *m = &memories[hash % MEMORIES];
		m->hash = hash;
		m->len = len;
		memcpy(m->signature, sig, len);
	}
	pthread_mutex_unlock(&memories_lock);
}

// forget_memories is due when the handles of keys begin anew.
static void forget_memories(void)
{
	pthread_mutex_lock(&memories_lock);
	free(memories);
	memories = NULL;
	pthread_mutex_unlock(&memories_lock);
}

// ---- General calls -------------------------------------------------------------

static bool initialised;

// attach maps the control file that the environment names now.
static CK_RV attach(void)
{
	const char *path = getenv("HSMFAULT_CONTROL");
	if (ctl != &nothing)
		munmap(ctl, sizeof *ctl);
	ctl = &nothing;
	self = NULL;
	if (path == NULL || *path == 0)
		return CKR_OK;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	void *p = MAP_FAILED;
	if (fd >= 0 && fstat(fd, &st) == 0 && (uint64_t)st.st_size == sizeof *ctl)
		p = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED) {
		fprintf(stderr, "hsmfault: control file %s is missing or of another size\n", path);
		return CKR_GENERAL_ERROR;
	}
	if (atomic_load(&((struct control *)p)->layout) != layout_hash()) {
		fprintf(stderr, "hsmfault: control file %s has another layout than this module\n", path);
		munmap(p, sizeof *ctl);
		return CKR_GENERAL_ERROR;
	}
	ctl = p;
	atomic_store(&epoch_seen, atomic_load(&ctl->session_epoch));
	enlist();
	return CKR_OK;
}

static CK_RV fault_C_Initialize(CK_VOID_PTR args)
{
	CK_RV rv = CKR_OK;
	if (!initialised && (rv = attach()) != CKR_OK)
		return rv;
	atomic_fetch_add(&ctl->counts[FN_INITIALIZE], 1);
	if (take(&ctl->fail_left[FN_INITIALIZE]))
		return atomic_load(&ctl->fail_rv[FN_INITIALIZE]);
	rv = real->C_Initialize(args);
	if (rv == CKR_OK)
		initialised = true;
	return rv;
}

static CK_RV fault_C_Finalize(CK_VOID_PTR reserved)
{
	CK_RV rv = real->C_Finalize(reserved);
	if (rv != CKR_OK)
		return rv;
	initialised = false;
	pthread_mutex_lock(&sessions_lock);
	memset(sessions, 0, sizeof sessions);
	pthread_mutex_unlock(&sessions_lock);
	forget_memories();
	if (self != NULL)
		atomic_store(&self->sessions, 0);
	return CKR_OK;
}

static CK_RV fault_C_GetSlotList(CK_BBOOL present_only, CK_SLOT_ID_PTR slots, CK_ULONG_PTR n)
{
	struct call c;
	CK_RV rv = enter(&c, FN_GET_SLOT_LIST);
	if (rv != CKR_OK)
		return rv;
	if (n != NULL && atomic_load(&ctl->absent)) {
		*n = 0;
		return CKR_OK;
	}
	REAL(C_GetSlotList(present_only, slots, n));
	return leave(&c, rv);
}

// blank_pad copies a text into a field of a PKCS#11 structure.
static void blank_pad(CK_UTF8CHAR *to, size_t size, const unsigned char *from)
{
	size_t n = strnlen((const char *)from, size);
	memset(to, ' ', size);
	memcpy(to, from, n);
}

static CK_RV fault_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
	struct call c;
	CK_RV rv = enter_slot(&c, FN_GET_TOKEN_INFO);
	if (rv != CKR_OK)
		return rv;
	REAL(C_GetTokenInfo(slot, info));
	if (rv == CKR_OK && info->flags & CKF_TOKEN_INITIALIZED) { // the empty slot of SoftHSM is nobody
		if (atomic_load(&ctl->serial_set))
			blank_pad(info->serialNumber, sizeof info->serialNumber, ctl->serial);
		if (atomic_load(&ctl->label_set))
			blank_pad(info->label, sizeof info->label, ctl->label);
		if (atomic_load(&ctl->protected_path))
			info->flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
	}
	return leave(&c, rv);
}

static CK_RV fault_C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR n)
{
	struct call c;
	CK_RV rv = enter_slot(&c, FN_OTHER);
	if (rv != CKR_OK)
		return rv;
	CK_MECHANISM_TYPE all[512];
	CK_ULONG have = LENGTH(all), keep = 0;
	REAL(C_GetMechanismList(slot, all, &have));
	if (rv != CKR_OK)
		return leave(&c, rv);
	if (atomic_load(&ctl->one_hop) && have < LENGTH(all))
		all[have++] = CKM_RSA_AES_KEY_WRAP;
	for (CK_ULONG i = 0; i < have; i++)
		if (!hidden(all[i]))
			all[keep++] = all[i];
	if (list != NULL && *n < keep)
		rv = CKR_BUFFER_TOO_SMALL;
	else if (list != NULL)
		memcpy(list, all, keep * sizeof *list);
	*n = keep;
	return leave(&c, rv);
}

static CK_RV fault_C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info)
{
	struct call c;
	CK_RV rv = enter_slot(&c, FN_OTHER);
	if (rv != CKR_OK)
		return rv;
	if (hidden(type))
		return CKR_MECHANISM_INVALID;
	REAL(C_GetMechanismInfo(slot, type, info));
	return leave(&c, rv);
}

static CK_RV fault_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR handle)
{
	struct call c;
	CK_RV rv = enter_slot(&c, FN_OPEN_SESSION);
	if (rv == CKR_OK && take(&ctl->fail_left[FN_ANY]))
		rv = atomic_load(&ctl->fail_rv[FN_ANY]);
	if (rv != CKR_OK || (rv = reserve_session()) != CKR_OK)
		return rv;
	real_begin(); // a failover sees the session opened and listed, or not at all
	rv = real->C_OpenSession(slot, flags, app, notify, handle);
	if (rv == CKR_OK)
		add_session(*handle, slot);
	else
		uncount_session();
	real_end();
	return leave(&c, rv);
}

static CK_RV fault_C_CloseSession(CK_SESSION_HANDLE handle)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_CLOSE_SESSION, handle);
	if (rv == CKR_OK)
		REAL(C_CloseSession(handle));
	if (c.session != NULL && (rv == CKR_OK || c.session->dead)) {
		forget_session(c.session);
		return rv;
	}
	return leave(&c, rv);
}

static CK_RV fault_C_CloseAllSessions(CK_SLOT_ID slot)
{
	struct call c;
	CK_RV rv = enter_slot(&c, FN_OTHER);
	if (rv != CKR_OK)
		return rv;
	REAL(C_CloseAllSessions(slot));
	if (rv == CKR_OK)
		end_sessions(slot, false);
	return leave(&c, rv);
}

// ---- Objects -------------------------------------------------------------------

// C_FindObjects leaves out objects that are not there yet; an empty answer would
// mean that there are no more, so it asks on until something is left.
static CK_RV fault_C_FindObjects(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR objects, CK_ULONG max, CK_ULONG_PTR n)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_FIND_OBJECTS, s);
	if (rv != CKR_OK)
		return rv;
	bool lagging = newborn() && roll();
	CK_ULONG keep = 0, got;
	do {
		REAL(C_FindObjects(s, objects, max, n));
		got = rv == CKR_OK ? *n : 0;
		for (CK_ULONG i = 0; i < got; i++)
			if (!newborn() || !missing(s, objects[i], lagging))
				objects[keep++] = objects[i];
	} while (got != 0 && keep == 0);
	if (rv == CKR_OK)
		*n = keep;
	return leave(&c, rv);
}

static CK_RV fault_C_CreateObject(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR object)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_CREATE_OBJECT, s);
	if (rv != CKR_OK)
		return rv;
	REAL(C_CreateObject(s, t, n, object));
	if (rv == CKR_OK) {
		hop_import(s, t, n, *object);
		record_birth(s, *object);
	}
	return leave(&c, rv);
}

static CK_RV fault_C_GenerateKey(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR key)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_GENERATE_KEY, s);
	if (rv != CKR_OK || (rv = offered(m)) != CKR_OK)
		return rv;
	REAL(C_GenerateKey(s, m, t, n, key));
	if (rv == CKR_OK)
		record_birth(s, *key);
	return leave(&c, rv);
}

static CK_RV fault_C_GenerateKeyPair(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR pub, CK_ULONG npub, CK_ATTRIBUTE_PTR priv, CK_ULONG npriv, CK_OBJECT_HANDLE_PTR hpub, CK_OBJECT_HANDLE_PTR hpriv)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_GENERATE_KEY_PAIR, s);
	if (rv != CKR_OK || (rv = offered(m)) != CKR_OK || (rv = exportable(priv, npriv)) != CKR_OK)
		return rv;
	CK_ATTRIBUTE template[64];
	if (npriv > LENGTH(template))
		return CKR_ARGUMENTS_BAD;
	struct hop_target keep;
	CK_ULONG nkept = hop_keep(template, priv, npriv, &keep);
	REAL(C_GenerateKeyPair(s, m, pub, npub, template, nkept, hpub, hpriv));
	if (rv == CKR_OK) {
		hop_note(&keep, *hpriv);
		record_birth(s, *hpub);
		record_birth(s, *hpriv);
	}
	return leave(&c, rv);
}

static CK_RV fault_C_WrapKey(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, CK_BYTE_PTR out, CK_ULONG_PTR n)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_WRAP_KEY, s);
	if (rv != CKR_OK || (rv = offered(m)) != CKR_OK)
		return rv;
	if ((rv = present(s, wrapping, CKR_WRAPPING_KEY_HANDLE_INVALID)) != CKR_OK || (rv = present(s, key, CKR_KEY_HANDLE_INVALID)) != CKR_OK)
		return rv;
	if (atomic_load(&ctl->no_export)) {
		CK_OBJECT_CLASS class = CKO_DATA;
		CK_ATTRIBUTE a = { CKA_CLASS, &class, sizeof class };
		REAL(C_GetAttributeValue(s, key, &a, 1));
		if (rv == CKR_OK && class == CKO_PRIVATE_KEY)
			return CKR_KEY_UNEXTRACTABLE;
	}
	if (m->mechanism == CKM_RSA_AES_KEY_WRAP && atomic_load(&ctl->one_hop))
		rv = hop_wrap(s, m, wrapping, key, out, n);
	else
		REAL(C_WrapKey(s, m, wrapping, key, out, n));
	return leave(&c, rv);
}

static CK_RV fault_C_UnwrapKey(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE unwrapping, CK_BYTE_PTR in, CK_ULONG n, CK_ATTRIBUTE_PTR t, CK_ULONG nt, CK_OBJECT_HANDLE_PTR key)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_UNWRAP_KEY, s);
	if (rv != CKR_OK || (rv = offered(m)) != CKR_OK || (rv = present(s, unwrapping, CKR_UNWRAPPING_KEY_HANDLE_INVALID)) != CKR_OK)
		return rv;
	if ((rv = hop_allows(unwrapping, t, nt)) != CKR_OK)
		return rv;
	if (m->mechanism == CKM_RSA_AES_KEY_WRAP && atomic_load(&ctl->one_hop))
		rv = hop_unwrap(s, m, unwrapping, in, n, t, nt, key);
	else
		REAL(C_UnwrapKey(s, m, unwrapping, in, n, t, nt, key));
	if (rv == CKR_OK)
		record_birth(s, *key);
	return leave(&c, rv);
}

// ---- Signatures ----------------------------------------------------------------

static CK_MECHANISM mechanism_of(struct session *st)
{
	return (CK_MECHANISM){ st->mechanism, st->param_len != 0 ? st->param : NULL, st->param_len };
}

// flat reports whether a mechanism's parameter can be kept for later: it must not have
// pointers to the caller's memory.
static bool flat(const CK_MECHANISM *m)
{
	switch (m->mechanism) {
	case CKM_RSA_PKCS_PSS:
	case CKM_SHA1_RSA_PKCS_PSS:
	case CKM_SHA224_RSA_PKCS_PSS:
	case CKM_SHA256_RSA_PKCS_PSS:
	case CKM_SHA384_RSA_PKCS_PSS:
	case CKM_SHA512_RSA_PKCS_PSS:
		return m->ulParameterLen == sizeof(CK_RSA_PKCS_PSS_PARAMS);
	}
	return m->ulParameterLen == 0;
}

// init_deferred does the C_SignInit that was put off.
static CK_RV init_deferred(struct session *st, CK_SESSION_HANDLE s)
{
	CK_RV rv = CKR_OK;
	if (st == NULL || !st->deferred)
		return rv;
	st->deferred = false;
	CK_MECHANISM m = mechanism_of(st);
	REAL(C_SignInit(s, &m, st->key));
	return rv;
}

// end_sign ends a signing operation whose signature did not come from the real
// module, without the work of a signature where that can be avoided.
static void end_sign(struct session *st, CK_SESSION_HANDLE s)
{
	if (st != NULL && st->deferred) {
		st->deferred = false;
		return;
	}
	unsigned char octet = 0, sig[MAX_SIGNATURE];
	CK_ULONG n = sizeof sig;
	real_begin();
	// Single-part mechanisms refuse the update and end; the others need an end.
	if (real->C_SignUpdate(s, &octet, 1) == CKR_OK)
		real->C_SignFinal(s, sig, &n);
	real_end();
}

static CK_RV fault_C_SignInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_SIGN_INIT, s);
	if (rv != CKR_OK || (rv = offered_for(s, m, key)) != CKR_OK)
		return rv;
	struct session *st = c.session;
	if (st != NULL && m != NULL) {
		st->mechanism = m->mechanism;
		if (st->key != key || st->identity == 0)
			st->identity = identify(s, key);
		st->key = key;
		st->flat = flat(m);
		st->param_len = st->flat ? m->ulParameterLen : 0;
		if (st->param_len != 0)
			memcpy(st->param, m->pParameter, st->param_len);
		st->deferred = st->flat && atomic_load(&ctl->memo) && atomic_load(&ctl->lazy_init);
		if (st->deferred)
			return leave(&c, CKR_OK);
	}
	REAL(C_SignInit(s, m, key));
	return leave(&c, rv);
}

static CK_RV honest_sign(struct session *st, CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	bool memo = atomic_load(&ctl->memo) && st != NULL && st->flat;
	uint64_t h = 0;
	if (memo) {
		h = fnv(FNV_BASIS, &st->mechanism, sizeof st->mechanism);
		h = fnv(h, st->param, st->param_len);
		h = fnv(h, &st->key, sizeof st->key);
		h = fnv(h, data, n);
		if (recall(h, sig, len)) {
			end_sign(st, s);
			return CKR_OK;
		}
	}
	CK_RV rv = init_deferred(st, s);
	if (rv != CKR_OK)
		return rv;
	REAL(C_Sign(s, data, n, sig, len));
	if (rv == CKR_OK && memo)
		memorise(h, sig, *len);
	return rv;
}

// other_data_sign signs something else than it was asked to.
static CK_RV other_data_sign(struct session *st, CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	CK_RV rv = init_deferred(st, s);
	if (rv != CKR_OK)
		return rv;
	unsigned char *other = malloc(n + 1);
	if (other == NULL)
		return CKR_HOST_MEMORY;
	other[0] = 0;
	memcpy(other, data, n);
	other[n != 0 ? n - 1 : 0] ^= 1;
	REAL(C_Sign(s, other, n != 0 ? n : 1, sig, len));
	free(other);
	return rv;
}

// sign_with signs with the first key of the list, other than the session's own, whose
// signature has the wanted length. The caller is inside the gate.
static CK_RV sign_with(CK_SESSION_HANDLE s, struct session *st, const CK_OBJECT_HANDLE *keys, CK_ULONG nkeys, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG want)
{
	unsigned char buf[MAX_SIGNATURE];
	CK_MECHANISM m = mechanism_of(st);
	for (CK_ULONG i = 0; i < nkeys; i++) {
		CK_ULONG len = sizeof buf;
		if (keys[i] == st->key || real->C_SignInit(s, &m, keys[i]) != CKR_OK)
			continue;
		if (real->C_Sign(s, data, n, buf, &len) == CKR_OK && len == want) {
			memcpy(sig, buf, len);
			return CKR_OK;
		}
	}
	return CKR_KEY_HANDLE_INVALID;
}

// other_key_sign signs with another private key of the same type. It needs a session
// of its own, because the caller's one has an operation going on.
static CK_RV other_key_sign(struct session *st, CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	CK_RV rv = st == NULL ? CKR_SESSION_HANDLE_INVALID : init_deferred(st, s);
	if (rv != CKR_OK)
		return rv;
	CK_ULONG want = 0, found = 0;
	CK_KEY_TYPE type = 0;
	CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
	CK_SESSION_HANDLE helper;
	CK_OBJECT_HANDLE keys[64];
	CK_ATTRIBUTE query[] = { { CKA_KEY_TYPE, &type, sizeof type }, { CKA_CLASS, &class, sizeof class } };
	real_begin();
	rv = real->C_Sign(s, data, n, NULL, &want);
	if (rv == CKR_OK && want > *len)
		rv = CKR_BUFFER_TOO_SMALL;
	if (rv == CKR_OK)
		rv = real->C_GetAttributeValue(s, st->key, query, 1);
	if (rv == CKR_OK)
		rv = real->C_OpenSession(st->slot, CKF_SERIAL_SESSION, NULL, NULL, &helper);
	if (rv == CKR_OK) {
		rv = real->C_FindObjectsInit(helper, query, LENGTH(query));
		if (rv == CKR_OK) {
			rv = real->C_FindObjects(helper, keys, LENGTH(keys), &found);
			real->C_FindObjectsFinal(helper);
		}
		if (rv == CKR_OK)
			rv = sign_with(helper, st, keys, found, data, n, sig, want);
		real->C_CloseSession(helper);
	}
	real_end();
	if (rv != CKR_BUFFER_TOO_SMALL)
		end_sign(st, s);
	*len = want;
	return rv;
}

static struct forged *find_forged(const unsigned char *data, CK_ULONG n)
{
	for (size_t i = 0; i < LENGTH(ctl->forgeries); i++) {
		struct forged *f = &ctl->forgeries[i];
		if (atomic_load(&f->used) && atomic_load(&f->data_len) == n && memcmp(f->data, data, n) == 0)
			return f;
	}
	return NULL;
}

static CK_RV forged_sign(struct forged *f, struct session *st, CK_SESSION_HANDLE s, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	CK_ULONG n = atomic_load(&f->signature_len), room = *len;
	*len = n;
	if (room < n)
		return CKR_BUFFER_TOO_SMALL;
	memcpy(sig, f->signature, n);
	atomic_fetch_add(&f->hits, 1);
	end_sign(st, s);
	return CKR_OK;
}

// make_signature is what the HSM does when it has got as far as signing.
static CK_RV make_signature(struct session *st, CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	struct forged *f = find_forged(data, n);
	if (f != NULL)
		return forged_sign(f, st, s, sig, len);
	uint64_t wrong = take(&ctl->wrong_left) ? atomic_load(&ctl->wrong) : 0;
	if (wrong == WRONG_KEY)
		return other_key_sign(st, s, data, n, sig, len);
	if (wrong == WRONG_DATA)
		return other_data_sign(st, s, data, n, sig, len);
	CK_RV rv = honest_sign(st, s, data, n, sig, len);
	if (rv == CKR_OK && wrong == WRONG_BIT)
		sig[*len / 2] ^= 1;
	if (rv == CKR_OK && wrong == WRONG_LENGTH)
		*len -= 1;
	return rv;
}

// sign_length answers the question for the length, as client libraries do without
// asking the HSM.
static CK_RV sign_length(CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_ULONG_PTR len)
{
	struct call c = { .session_epoch = atomic_load(&ctl->session_epoch), .flight_epoch = atomic_load(&ctl->flight_epoch) };
	CK_RV rv = known(&c, s);
	if (rv != CKR_OK)
		return rv;
	if (c.session != NULL && c.session->deferred) {
		*len = MAX_SIGNATURE; // "may somewhat exceed" the length (PKCS#11 v2.40 §5.2)
		return CKR_OK;
	}
	REAL(C_Sign(s, data, n, NULL, len));
	return leave(&c, rv);
}

// count_signature is the HSM's own account, which no user of it can change.
static void count_signature(uint64_t identity)
{
	if (identity == 0)
		return; // a session object
	for (size_t i = 0; i < LENGTH(ctl->signers); i++) {
		struct signer *k = &ctl->signers[(identity + i) % LENGTH(ctl->signers)];
		uint64_t none = 0;
		if (atomic_load(&k->identity) != identity && !atomic_compare_exchange_strong(&k->identity, &none, identity) && none != identity)
			continue;
		atomic_fetch_add(&k->count, 1);
		return;
	}
}

static CK_RV fault_C_Sign(CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len)
{
	if (sig == NULL)
		return sign_length(s, data, n, len);
	struct call c;
	CK_RV rv = enter_session(&c, FN_SIGN, s);
	struct session *st = c.session != NULL ? c.session : find_session(s);
	if (rv == CKR_OK && throttled())
		rv = atomic_load(&ctl->throttle_rv);
	if (rv != CKR_OK) {
		end_sign(st, s); // a failed C_Sign ends the operation
		return rv;
	}
	uint64_t end = book();
	if (take(&ctl->close_left)) {
		rv = init_deferred(st, s);
		lose_sessions();
		st = c.session = NULL;
	}
	if (rv == CKR_OK)
		rv = make_signature(st, s, data, n, sig, len);
	if (rv == CKR_OK) {
		count_signature(st != NULL ? st->identity : 0);
		sleep_until(end);
	}
	return leave(&c, rv);
}

static CK_RV fault_C_SignUpdate(CK_SESSION_HANDLE s, CK_BYTE_PTR part, CK_ULONG n)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_OTHER, s);
	if (rv != CKR_OK || (rv = init_deferred(c.session, s)) != CKR_OK)
		return rv;
	REAL(C_SignUpdate(s, part, n));
	return leave(&c, rv);
}

// ---- Random numbers --------------------------------------------------------------

static CK_RV fault_C_GenerateRandom(CK_SESSION_HANDLE s, CK_BYTE_PTR out, CK_ULONG n)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_GENERATE_RANDOM, s);
	if (rv != CKR_OK)
		return rv;
	uint64_t seed = atomic_load(&ctl->rng_seed);
	switch (atomic_load(&ctl->rng)) {
	case RNG_CONSTANT:
		memset(out, (int)(seed & 0xff), n);
		break;
	case RNG_REPEAT: // the same stream from its beginning for every call
		for (CK_ULONG i = 0; i < n; i++) {
			seed = fnv(seed, &i, sizeof i);
			out[i] = (CK_BYTE)(seed >> 32);
		}
		break;
	default:
		REAL(C_GenerateRandom(s, out, n));
	}
	return leave(&c, rv);
}

// quorum waits until persons have put enough cards into the device for one login, as a
// PED does; the cards are used up by it.
static CK_RV quorum(void)
{
	atomic_fetch_add(&ctl->quorum_asked, 1);
	for (;; sleep_until(now() + 1000)) {
		if (take(&ctl->quorum_refused))
			return CKR_FUNCTION_CANCELED;
		uint64_t needed = atomic_load(&ctl->quorum_needed), given = atomic_load(&ctl->quorum_given);
		if (given >= needed && atomic_compare_exchange_strong(&ctl->quorum_given, &given, given - needed))
			return CKR_OK;
	}
}

static CK_RV fault_C_Login(CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG n)
{
	struct call c;
	CK_RV rv = enter_session(&c, FN_LOGIN, s);
	if (rv != CKR_OK)
		return rv;
	if (user == CKU_SO && atomic_load(&ctl->protected_path)) {
		if (pin != NULL || n != 0)
			return CKR_PIN_INCORRECT; // the device takes none from outside
		if ((rv = quorum()) != CKR_OK)
			return rv;
		pin = ctl->so_pin;
		n = strnlen((const char *)pin, sizeof ctl->so_pin);
	}
	if (user == CKU_SO)
		atomic_fetch_add(&ctl->so_logins, 1);
	REAL(C_Login(s, user, pin, n));
	return leave(&c, rv);
}

// ---- Calls that need nothing of their own ------------------------------------------

// SLOT_CALL and SESSION_CALL define a call that is refused if guard says so, and
// delegated otherwise.
#define SLOT_CALL(name, fn, params, args)          \
	static CK_RV fault_##name params                \
	{                                              \
		struct call c;                             \
		CK_RV rv = enter_slot(&c, fn);             \
		if (rv != CKR_OK)                          \
			return rv;                             \
		REAL(name args);                           \
		return leave(&c, rv);                      \
	}

#define SESSION_CALL(name, fn, guard, params, args) \
	static CK_RV fault_##name params                \
	{                                              \
		struct call c;                             \
		CK_RV rv = enter_session(&c, fn, s);       \
		if (rv != CKR_OK || (rv = guard) != CKR_OK) \
			return rv;                             \
		REAL(name args);                           \
		return leave(&c, rv);                      \
	}

#define IN_OUT (CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR len)
#define IN_ONLY (CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n)
#define OUT_ONLY (CK_SESSION_HANDLE s, CK_BYTE_PTR out, CK_ULONG_PTR len)
#define INIT (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
#define TEMPLATE CK_ATTRIBUTE_PTR t, CK_ULONG n

SLOT_CALL(C_GetSlotInfo, FN_OTHER, (CK_SLOT_ID slot, CK_SLOT_INFO_PTR info), (slot, info))
SLOT_CALL(C_InitToken, FN_OTHER, (CK_SLOT_ID slot, CK_UTF8CHAR_PTR pin, CK_ULONG n, CK_UTF8CHAR_PTR label), (slot, pin, n, label))
SLOT_CALL(C_WaitForSlotEvent, FN_OTHER, (CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved), (flags, slot, reserved))

SESSION_CALL(C_InitPIN, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s, CK_UTF8CHAR_PTR pin, CK_ULONG n), (s, pin, n))
SESSION_CALL(C_SetPIN, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s, CK_UTF8CHAR_PTR o, CK_ULONG no, CK_UTF8CHAR_PTR p, CK_ULONG np), (s, o, no, p, np))
SESSION_CALL(C_GetSessionInfo, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s, CK_SESSION_INFO_PTR info), (s, info))
SESSION_CALL(C_GetOperationState, FN_OTHER, CKR_OK, OUT_ONLY, (s, out, len))
SESSION_CALL(C_SetOperationState, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_OBJECT_HANDLE e, CK_OBJECT_HANDLE a), (s, in, n, e, a))
SESSION_CALL(C_Logout, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s), (s))
SESSION_CALL(C_CopyObject, FN_OTHER, present(s, o, CKR_OBJECT_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, TEMPLATE, CK_OBJECT_HANDLE_PTR copy), (s, o, t, n, copy))
SESSION_CALL(C_DestroyObject, FN_DESTROY_OBJECT, present(s, o, CKR_OBJECT_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o), (s, o))
SESSION_CALL(C_GetObjectSize, FN_OTHER, present(s, o, CKR_OBJECT_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ULONG_PTR size), (s, o, size))
SESSION_CALL(C_GetAttributeValue, FN_GET_ATTRIBUTE_VALUE, present(s, o, CKR_OBJECT_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, TEMPLATE), (s, o, t, n))
SESSION_CALL(C_SetAttributeValue, FN_OTHER, present(s, o, CKR_OBJECT_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, TEMPLATE), (s, o, t, n))
SESSION_CALL(C_FindObjectsInit, FN_FIND_OBJECTS_INIT, CKR_OK, (CK_SESSION_HANDLE s, TEMPLATE), (s, t, n))
SESSION_CALL(C_FindObjectsFinal, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s), (s))
SESSION_CALL(C_EncryptInit, FN_OTHER, offered_for(s, m, k), INIT, (s, m, k))
SESSION_CALL(C_Encrypt, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_EncryptUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_EncryptFinal, FN_OTHER, CKR_OK, OUT_ONLY, (s, out, len))
SESSION_CALL(C_DecryptInit, FN_OTHER, offered_for(s, m, k), INIT, (s, m, k))
SESSION_CALL(C_Decrypt, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DecryptUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DecryptFinal, FN_OTHER, CKR_OK, OUT_ONLY, (s, out, len))
SESSION_CALL(C_DigestInit, FN_OTHER, offered(m), (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m), (s, m))
SESSION_CALL(C_Digest, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DigestUpdate, FN_OTHER, CKR_OK, IN_ONLY, (s, in, n))
SESSION_CALL(C_DigestKey, FN_OTHER, present(s, k, CKR_KEY_HANDLE_INVALID), (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE k), (s, k))
SESSION_CALL(C_DigestFinal, FN_OTHER, CKR_OK, OUT_ONLY, (s, out, len))
SESSION_CALL(C_SignFinal, FN_OTHER, CKR_OK, OUT_ONLY, (s, out, len))
SESSION_CALL(C_SignRecoverInit, FN_OTHER, offered_for(s, m, k), INIT, (s, m, k))
SESSION_CALL(C_SignRecover, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_VerifyInit, FN_OTHER, offered_for(s, m, k), INIT, (s, m, k))
SESSION_CALL(C_Verify, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG len), (s, in, n, sig, len))
SESSION_CALL(C_VerifyUpdate, FN_OTHER, CKR_OK, IN_ONLY, (s, in, n))
SESSION_CALL(C_VerifyFinal, FN_OTHER, CKR_OK, IN_ONLY, (s, in, n))
SESSION_CALL(C_VerifyRecoverInit, FN_OTHER, offered_for(s, m, k), INIT, (s, m, k))
SESSION_CALL(C_VerifyRecover, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DigestEncryptUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DecryptDigestUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_SignEncryptUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DecryptVerifyUpdate, FN_OTHER, CKR_OK, IN_OUT, (s, in, n, out, len))
SESSION_CALL(C_DeriveKey, FN_OTHER, offered_for(s, m, k), (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k, TEMPLATE, CK_OBJECT_HANDLE_PTR out), (s, m, k, t, n, out))
SESSION_CALL(C_SeedRandom, FN_OTHER, CKR_OK, IN_ONLY, (s, in, n))
SESSION_CALL(C_GetFunctionStatus, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s), (s))
SESSION_CALL(C_CancelFunction, FN_OTHER, CKR_OK, (CK_SESSION_HANDLE s), (s))

// C_GetInfo is answered by the client library of an HSM, not by the HSM.
static CK_RV fault_C_GetInfo(CK_INFO_PTR info) { return real->C_GetInfo(info); }

// ---- The door ------------------------------------------------------------------------

static CK_RV fault_C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out);

// The list is made from pkcs11f.h, so that no function can be forgotten.
static CK_FUNCTION_LIST functions = {
	{ 2, 40 },
#define CK_PKCS11_FUNCTION_INFO(name) fault_##name,
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO
};

static pthread_once_t load_once = PTHREAD_ONCE_INIT;

static void load_real(void)
{
	const char *path = getenv("HSMFAULT_MODULE");
	if (path == NULL || *path == 0)
		path = DEFAULT_MODULE;
	void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	CK_C_GetFunctionList get = NULL;
	if (lib != NULL)
		*(void **)&get = dlsym(lib, "C_GetFunctionList");
	if (get == NULL || get(&real) != CKR_OK) {
		fprintf(stderr, "hsmfault: no PKCS#11 module: %s\n", lib != NULL ? path : dlerror());
		real = NULL;
	}
}

static CK_RV fault_C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out)
{
	pthread_once(&load_once, load_real);
	if (real == NULL)
		return CKR_GENERAL_ERROR;
	*out = &functions;
	return CKR_OK;
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out)
{
	return fault_C_GetFunctionList(out);
}
