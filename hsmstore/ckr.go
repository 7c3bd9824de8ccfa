package hsmstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// What the return codes of PKCS#11 mean for the people who run an HSM (v2.40 §5.1, v3.0
// §5.1). MODULE, TOKEN and MEMBER in a command stand for those at hand.

// explanation is a return code in words.
type explanation struct {
	name    string // CKR_…
	meaning string
	cause   string // the likely one
	next    string // what to do about it
}

// Commands that many codes lead to.
const (
	nextDoctor = "chancery doctor --member MEMBER"
	nextSlots  = "pkcs11-tool --module MODULE --list-token-slots"
	nextVendor = "look into the vendor's log and its tool for the state of the HSM, then chancery doctor --member MEMBER"
	nextPIN    = "put the right PIN where pin: of member MEMBER points to, before anything is started that would try the wrong one again; then chancery doctor --member MEMBER"
	nextReport = "keep the output of chancery doctor --member MEMBER --json and ask the vendor"
	nextCopy   = "chancery hsm qualify tells what this HSM offers; choose another algorithm or way of replication for it"
)

var explanations = map[pkcs11.Error]explanation{
	pkcs11.CKR_CANCEL:                           {"CKR_CANCEL", "the call was cancelled", "a person at the HSM, or its PIN pad, said no", "try again with somebody at the HSM: " + nextDoctor},
	pkcs11.CKR_HOST_MEMORY:                      {"CKR_HOST_MEMORY", "this computer has no memory left for the module", "memory is short, or a limit of the service (MemoryMax, ulimit) is too low", "free -m; systemctl show chancery -p MemoryMax"},
	pkcs11.CKR_SLOT_ID_INVALID:                  {"CKR_SLOT_ID_INVALID", "there is no such slot", "the HSM was disconnected, or its slots were numbered anew", nextSlots},
	pkcs11.CKR_GENERAL_ERROR:                    {"CKR_GENERAL_ERROR", "the module failed and does not say why", "its configuration or data cannot be read (file missing, owned by another user), or the HSM cannot be reached", "run it as the user of the server and look into the vendor's log: " + nextDoctor},
	pkcs11.CKR_FUNCTION_FAILED:                  {"CKR_FUNCTION_FAILED", "the HSM could not do it this time", "the HSM is overloaded, or limits the number of calls", nextVendor},
	pkcs11.CKR_ARGUMENTS_BAD:                    {"CKR_ARGUMENTS_BAD", "the module does not accept an argument", "settings that this module wants at C_Initialize are missing (reserved:), or are malformed", "give them in reserved: of member MEMBER as the vendor describes them; " + nextDoctor},
	pkcs11.CKR_NO_EVENT:                         {"CKR_NO_EVENT", "no slot event has happened", "the module answers a question that was not asked", nextReport},
	pkcs11.CKR_NEED_TO_CREATE_THREADS:           {"CKR_NEED_TO_CREATE_THREADS", "the module must be allowed to start threads", "the library is built for another kind of application", nextReport},
	pkcs11.CKR_CANT_LOCK:                        {"CKR_CANT_LOCK", "the module cannot work for several threads at once", "the library was built without thread support", "ask the vendor for the multi-threaded library; " + nextDoctor},
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:              {"CKR_ATTRIBUTE_READ_ONLY", "an attribute cannot be set or changed", "the HSM keeps that attribute to itself or to its security officer", nextCopy},
	pkcs11.CKR_ATTRIBUTE_SENSITIVE:              {"CKR_ATTRIBUTE_SENSITIVE", "the attribute is secret and is not shown", "the private key is protected, as it shall be", "nothing is to be done; if a step failed by it: " + nextReport},
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:           {"CKR_ATTRIBUTE_TYPE_INVALID", "the module does not know an attribute", "an older module, or one of another profile of the standard", nextCopy},
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID:          {"CKR_ATTRIBUTE_VALUE_INVALID", "the module does not accept the value of an attribute", "a curve, key size or template that this HSM does not have", nextCopy},
	ckrActionProhibited:                         {"CKR_ACTION_PROHIBITED", "the HSM's policy forbids it", "the object must not be copied, destroyed or used in that way", "ask the HSM's security officer for its policy; " + nextDoctor},
	pkcs11.CKR_DATA_INVALID:                     {"CKR_DATA_INVALID", "the module does not accept the data", "a mechanism of this name works differently here", nextReport},
	pkcs11.CKR_DATA_LEN_RANGE:                   {"CKR_DATA_LEN_RANGE", "the data is too long or too short", "a mechanism of this name works differently here", nextReport},
	pkcs11.CKR_DEVICE_ERROR:                     {"CKR_DEVICE_ERROR", "the HSM itself, or the way to it, failed", "the HSM is off, restarting, tampered with or not reachable; a client service (such as a proxy) has ended", "check power and network of the HSM and its client service, then " + nextDoctor},
	pkcs11.CKR_DEVICE_MEMORY:                    {"CKR_DEVICE_MEMORY", "the HSM has no room left", "too many objects or sessions on the token", "chancery hsm list; remove what is not ours with the vendor's tool, or close other applications"},
	pkcs11.CKR_DEVICE_REMOVED:                   {"CKR_DEVICE_REMOVED", "the token was taken out", "the HSM was unplugged, restarted or lost its network", "connect it again, then " + nextDoctor},
	pkcs11.CKR_ENCRYPTED_DATA_INVALID:           {"CKR_ENCRYPTED_DATA_INVALID", "encrypted data is malformed", "it was made for another key or by another mechanism", nextReport},
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:         {"CKR_ENCRYPTED_DATA_LEN_RANGE", "encrypted data has a wrong length", "it was made for another key or by another mechanism", nextReport},
	pkcs11.CKR_FUNCTION_CANCELED:                {"CKR_FUNCTION_CANCELED", "the call was ended from outside", "a failover of the vendor's cluster, or an administrator", nextDoctor},
	pkcs11.CKR_FUNCTION_NOT_PARALLEL:            {"CKR_FUNCTION_NOT_PARALLEL", "nothing runs in parallel in this session", "the module answers a question that was not asked", nextReport},
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:           {"CKR_FUNCTION_NOT_SUPPORTED", "the module does not have this function", "a library with a small part of the standard, or an old version", "ask the vendor for a newer library; " + nextCopy},
	pkcs11.CKR_KEY_HANDLE_INVALID:               {"CKR_KEY_HANDLE_INVALID", "the key is not there any more", "it was deleted, the session ended, or a node of the vendor's cluster does not have it yet", nextDoctor},
	pkcs11.CKR_KEY_SIZE_RANGE:                   {"CKR_KEY_SIZE_RANGE", "the key is too long or too short for this HSM", "this HSM, or its mode (FIPS), does not allow that size", nextCopy},
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:            {"CKR_KEY_TYPE_INCONSISTENT", "the key is of another type than the mechanism", "another object has the identifier of the key", "chancery hsm list; " + nextDoctor},
	pkcs11.CKR_KEY_NOT_NEEDED:                   {"CKR_KEY_NOT_NEEDED", "a key was given where none belongs", "a mechanism of this name works differently here", nextReport},
	pkcs11.CKR_KEY_CHANGED:                      {"CKR_KEY_CHANGED", "the key is another one than before", "the key was replaced on the token", "treat it as foreign: chancery hsm list, then " + nextDoctor},
	pkcs11.CKR_KEY_NEEDED:                       {"CKR_KEY_NEEDED", "a key is missing", "a mechanism of this name works differently here", nextReport},
	pkcs11.CKR_KEY_INDIGESTIBLE:                 {"CKR_KEY_INDIGESTIBLE", "the key cannot be hashed", "its attributes forbid it", nextReport},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:       {"CKR_KEY_FUNCTION_NOT_PERMITTED", "the key must not be used for that", "an attribute of the key (CKA_SIGN, CKA_ALLOWED_MECHANISMS) or the policy of the HSM", "look at the key's attributes: pkcs11-tool --module MODULE --token-label TOKEN --login --list-objects; " + nextDoctor},
	pkcs11.CKR_KEY_NOT_WRAPPABLE:                {"CKR_KEY_NOT_WRAPPABLE", "the key cannot be wrapped by that key", "it is WRAP_WITH_TRUSTED and the other key is not trusted, or the HSM cannot wrap keys of its kind", nextCopy},
	pkcs11.CKR_KEY_UNEXTRACTABLE:                {"CKR_KEY_UNEXTRACTABLE", "the key may not leave the HSM", "it was born with CKA_EXTRACTABLE=false", "use replication: native for this HSM; a key that is there already stays where it is"},
	pkcs11.CKR_MECHANISM_INVALID:                {"CKR_MECHANISM_INVALID", "the HSM does not have this mechanism", "the model, its firmware, licence or mode (FIPS) leaves it out", "pkcs11-tool --module MODULE --token-label TOKEN --list-mechanisms; " + nextCopy},
	pkcs11.CKR_MECHANISM_PARAM_INVALID:          {"CKR_MECHANISM_PARAM_INVALID", "the HSM does not accept a parameter of the mechanism", "it has the mechanism with another hash, curve or salt only", nextCopy},
	pkcs11.CKR_OBJECT_HANDLE_INVALID:            {"CKR_OBJECT_HANDLE_INVALID", "the object is not there any more", "it was deleted, somebody logged out, or a node of the vendor's cluster does not have it yet", nextDoctor},
	pkcs11.CKR_OPERATION_ACTIVE:                 {"CKR_OPERATION_ACTIVE", "the session is busy with another operation", "an earlier call was not finished, or the HSM limits the number of calls", nextDoctor},
	pkcs11.CKR_OPERATION_NOT_INITIALIZED:        {"CKR_OPERATION_NOT_INITIALIZED", "the operation was not begun", "the module forgot it, as after a failover", nextDoctor},
	pkcs11.CKR_PIN_INCORRECT:                    {"CKR_PIN_INCORRECT", "the PIN is wrong", "the PIN was changed on the token, or the setting names the PIN of another token", nextPIN},
	pkcs11.CKR_PIN_INVALID:                      {"CKR_PIN_INVALID", "the PIN has characters that the token does not allow", "the PIN holds more than the PIN: blanks, a second line, a character set", nextPIN},
	pkcs11.CKR_PIN_LEN_RANGE:                    {"CKR_PIN_LEN_RANGE", "the PIN is too short or too long", "the setting names the PIN of another token, or an empty one", nextPIN},
	pkcs11.CKR_PIN_EXPIRED:                      {"CKR_PIN_EXPIRED", "the PIN must be changed before it is used", "the token wants a new PIN after a time or after its first use", "pkcs11-tool --module MODULE --token-label TOKEN --login --change-pin; put the new one where pin: of member MEMBER points to"},
	pkcs11.CKR_PIN_LOCKED:                       {"CKR_PIN_LOCKED", "the PIN is locked after too many wrong ones", "something tried a wrong PIN again and again", "the security officer sets a new one: pkcs11-tool --module MODULE --token-label TOKEN --login --login-type so --init-pin; find out what tried"},
	pkcs11.CKR_SESSION_CLOSED:                   {"CKR_SESSION_CLOSED", "the session was closed", "the HSM restarted, or closes sessions that idle", nextDoctor},
	pkcs11.CKR_SESSION_COUNT:                    {"CKR_SESSION_COUNT", "the token opens no more sessions", "other applications hold them, or the HSM's limit is low", "close other applications, or lower sessions: of member MEMBER below the limit of the HSM"},
	pkcs11.CKR_SESSION_HANDLE_INVALID:           {"CKR_SESSION_HANDLE_INVALID", "there is no such session any more", "the HSM restarted, failed over, or closes sessions that idle", nextDoctor},
	pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED:   {"CKR_SESSION_PARALLEL_NOT_SUPPORTED", "parallel sessions do not exist", "a very old module", "ask the vendor for a newer library"},
	pkcs11.CKR_SESSION_READ_ONLY:                {"CKR_SESSION_READ_ONLY", "the session may only read", "the token is write-protected", "look at the flags of the token: " + nextSlots},
	pkcs11.CKR_SESSION_EXISTS:                   {"CKR_SESSION_EXISTS", "a session is open", "another user of the library in this process", nextDoctor},
	pkcs11.CKR_SESSION_READ_ONLY_EXISTS:         {"CKR_SESSION_READ_ONLY_EXISTS", "a read-only session hinders the login of the security officer", "another user of the library in this process", nextDoctor},
	pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS:     {"CKR_SESSION_READ_WRITE_SO_EXISTS", "the security officer is logged in", "a ceremony runs on this token", "wait for its end, then " + nextDoctor},
	pkcs11.CKR_SIGNATURE_INVALID:                {"CKR_SIGNATURE_INVALID", "the signature is wrong", "the HSM used another key or damaged the data", "take the HSM out of service; " + nextReport},
	pkcs11.CKR_SIGNATURE_LEN_RANGE:              {"CKR_SIGNATURE_LEN_RANGE", "the signature has a wrong length", "the HSM used another key", "take the HSM out of service; " + nextReport},
	pkcs11.CKR_TEMPLATE_INCOMPLETE:              {"CKR_TEMPLATE_INCOMPLETE", "an attribute is missing that this module wants", "the module wants more than the standard", nextCopy},
	pkcs11.CKR_TEMPLATE_INCONSISTENT:            {"CKR_TEMPLATE_INCONSISTENT", "attributes contradict each other or the HSM's policy", "the HSM makes no keys that may be copied by wrapping, or an unwrap template forbids it", nextCopy},
	pkcs11.CKR_TOKEN_NOT_PRESENT:                {"CKR_TOKEN_NOT_PRESENT", "the slot is empty", "the HSM is off or not reachable, its partition not assigned, or the module reads another configuration", nextSlots},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:             {"CKR_TOKEN_NOT_RECOGNIZED", "the module does not know what is in the slot", "the token was not initialized, or is for another vendor's module", nextSlots},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:            {"CKR_TOKEN_WRITE_PROTECTED", "the token is write-protected", "a switch or policy of the HSM", "ask the HSM's security officer; " + nextSlots},
	pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:    {"CKR_UNWRAPPING_KEY_HANDLE_INVALID", "the unwrapping key is not there any more", "the session ended, or a login changed the user", nextReport},
	pkcs11.CKR_UNWRAPPING_KEY_SIZE_RANGE:        {"CKR_UNWRAPPING_KEY_SIZE_RANGE", "the unwrapping key has a size that the HSM does not take", "the HSM limits transport keys to other sizes than RSA-4096 and AES-256", nextCopy},
	pkcs11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT: {"CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", "the unwrapping key does not fit the mechanism", "the HSM's mechanism is another one than its number says", nextCopy},
	pkcs11.CKR_USER_ALREADY_LOGGED_IN:           {"CKR_USER_ALREADY_LOGGED_IN", "the user is logged in already", "the module shares logins between applications", nextReport},
	pkcs11.CKR_USER_NOT_LOGGED_IN:               {"CKR_USER_NOT_LOGGED_IN", "nobody is logged in", "the login was lost, as after a restart of the HSM", nextDoctor},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:         {"CKR_USER_PIN_NOT_INITIALIZED", "the token has no user PIN yet", "the token was initialized and the last step, setting the user PIN, was left out", "pkcs11-tool --module MODULE --token-label TOKEN --login --login-type so --init-pin; put it where pin: of member MEMBER points to"},
	pkcs11.CKR_USER_TYPE_INVALID:                {"CKR_USER_TYPE_INVALID", "the token does not know this kind of user", "a token without a security officer, or with another model of users", nextCopy},
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN:   {"CKR_USER_ANOTHER_ALREADY_LOGGED_IN", "another user is logged in", "the module shares logins between applications, and a ceremony runs", "wait for its end, then " + nextDoctor},
	pkcs11.CKR_USER_TOO_MANY_TYPES:              {"CKR_USER_TOO_MANY_TYPES", "too many users are logged in", "the token allows one login at a time", "close other applications that use the token, then " + nextDoctor},
	pkcs11.CKR_WRAPPED_KEY_INVALID:              {"CKR_WRAPPED_KEY_INVALID", "a wrapped key is damaged or was wrapped by another key", "the two modules mean different mechanisms by one number, or the blob was changed", nextCopy},
	pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:            {"CKR_WRAPPED_KEY_LEN_RANGE", "a wrapped key has a wrong length", "the two modules mean different mechanisms by one number", nextCopy},
	pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID:      {"CKR_WRAPPING_KEY_HANDLE_INVALID", "the wrapping key is not there any more", "the session ended, or a login changed the user", nextReport},
	pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE:          {"CKR_WRAPPING_KEY_SIZE_RANGE", "the wrapping key has a size that the HSM does not take", "the HSM limits wrapping keys to other sizes", nextCopy},
	pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT:   {"CKR_WRAPPING_KEY_TYPE_INCONSISTENT", "the wrapping key does not fit the mechanism", "the HSM's mechanism is another one than its number says", nextCopy},
	pkcs11.CKR_RANDOM_SEED_NOT_SUPPORTED:        {"CKR_RANDOM_SEED_NOT_SUPPORTED", "the random source cannot be seeded", "the HSM seeds it itself, as it shall", "nothing is to be done; if a step failed by it: " + nextReport},
	pkcs11.CKR_RANDOM_NO_RNG:                    {"CKR_RANDOM_NO_RNG", "the token gives no random numbers", "the HSM keeps its random source to itself", "ask the vendor for evidence of its random source (FIPS 140 certificate)"},
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:            {"CKR_DOMAIN_PARAMS_INVALID", "the HSM does not have this curve", "the model, its firmware or mode (FIPS) leaves it out", nextCopy},
	ckrCurveNotSupported:                        {"CKR_CURVE_NOT_SUPPORTED", "the HSM does not have this curve", "the model, its firmware or mode (FIPS) leaves it out", nextCopy},
	pkcs11.CKR_BUFFER_TOO_SMALL:                 {"CKR_BUFFER_TOO_SMALL", "the answer is longer than the module said before", "a fault of the module", nextReport},
	pkcs11.CKR_SAVED_STATE_INVALID:              {"CKR_SAVED_STATE_INVALID", "a saved state is malformed", "the module answers a question that was not asked", nextReport},
	pkcs11.CKR_INFORMATION_SENSITIVE:            {"CKR_INFORMATION_SENSITIVE", "the information is secret", "the HSM's policy", nextReport},
	pkcs11.CKR_STATE_UNSAVEABLE:                 {"CKR_STATE_UNSAVEABLE", "the state cannot be saved", "the module answers a question that was not asked", nextReport},
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:         {"CKR_CRYPTOKI_NOT_INITIALIZED", "the module was not initialized", "something else in the process closed it, or the vendor's client service is not running", "start the vendor's client service, then " + nextDoctor},
	pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED:     {"CKR_CRYPTOKI_ALREADY_INITIALIZED", "the module is initialized already", "two libraries share one state", nextReport},
	pkcs11.CKR_MUTEX_BAD:                        {"CKR_MUTEX_BAD", "a lock of the module is broken", "a fault of the module", nextReport},
	pkcs11.CKR_MUTEX_NOT_LOCKED:                 {"CKR_MUTEX_NOT_LOCKED", "a lock of the module was not locked", "a fault of the module", nextReport},
	ckrNewPINMode:                               {"CKR_NEW_PIN_MODE", "the token wants a new PIN", "a one-time PIN is in use", nextPIN},
	ckrNextOTP:                                  {"CKR_NEXT_OTP", "the token wants the next one-time password", "a one-time PIN is in use, which cannot serve a server", "ask the HSM's security officer for a user with a fixed PIN"},
	pkcs11.CKR_FUNCTION_REJECTED:                {"CKR_FUNCTION_REJECTED", "the HSM refused on somebody's behalf", "the call needs the consent of persons at the HSM (quorum)", "gather the quorum that the HSM's policy wants, then " + nextDoctor},
	ckrTokenResourceExceeded:                    {"CKR_TOKEN_RESOURCE_EXCEEDED", "the HSM has reached a limit", "too many objects, sessions or operations", nextVendor},
	ckrOperationCancelFailed:                    {"CKR_OPERATION_CANCEL_FAILED", "an operation could not be ended", "a fault of the module", nextReport},
	ckrKeyExhausted:                             {"CKR_KEY_EXHAUSTED", "the key has made all the signatures it can", "a stateful key (HSS, XMSS), which is not ours", "generate another key"},
	ckrPINTooWeak:                               {"CKR_PIN_TOO_WEAK", "the PIN does not satisfy the token's rules", "the PIN is too simple", nextPIN},
	ckrPublicKeyInvalid:                         {"CKR_PUBLIC_KEY_INVALID", "the public key is not valid", "the object on the token is damaged", nextReport},
	ckrExceededMaxIterations:                    {"CKR_EXCEEDED_MAX_ITERATIONS", "no prime or parameter was found in time", "a fault of the HSM, or of its random source", nextVendor},
	ckrFIPSSelfTestFailed:                       {"CKR_FIPS_SELF_TEST_FAILED", "the HSM failed its self-test", "the HSM is broken, or its firmware was changed", nextVendor},
	ckrLibraryLoadFailed:                        {"CKR_LIBRARY_LOAD_FAILED", "the module could not load a library that it needs", "the vendor's client is not installed completely", "install the vendor's client completely, then " + nextDoctor},
}

// Codes that miekg/pkcs11 does not name (PKCS#11 v2.40 §5.1, v3.0 and v3.1 §5.1).
const (
	ckrActionProhibited      = 0x1B
	ckrCurveNotSupported     = 0x140
	ckrNewPINMode            = 0x1B0
	ckrNextOTP               = 0x1B1
	ckrExceededMaxIterations = 0x1B5
	ckrFIPSSelfTestFailed    = 0x1B6
	ckrLibraryLoadFailed     = 0x1B7
	ckrPINTooWeak            = 0x1B8
	ckrPublicKeyInvalid      = 0x1B9
	ckrTokenResourceExceeded = 0x201
	ckrOperationCancelFailed = 0x202
	ckrKeyExhausted          = 0x203
)

// explain puts a return code into words; also one that the standard does not know.
func explain(rv pkcs11.Error) explanation {
	if e, ok := explanations[rv]; ok {
		return e
	}
	if rv >= pkcs11.CKR_VENDOR_DEFINED {
		return explanation{fmt.Sprintf("CKR_VENDOR_DEFINED+%#x", uint(rv-pkcs11.CKR_VENDOR_DEFINED)), "an error of the vendor's own", "it stands in the vendor's manual under the number " + fmt.Sprintf("%#x", uint(rv)), nextVendor}
	}
	return explanation{fmt.Sprintf("%#x", uint(rv)), "a code that no version of PKCS#11 which this program knows has", "the module follows a newer standard, or is at fault", nextReport}
}

// returnCode is the code of a module in an error, if one is there.
func returnCode(err error) (pkcs11.Error, bool) {
	var rv pkcs11.Error
	return rv, errors.As(err, &rv)
}

// hints fills in what commands are about.
func (m MemberConfig) hints() *strings.Replacer {
	token := m.TokenLabel
	if token == "" {
		token = m.TokenSerial
	}
	return strings.NewReplacer("MODULE", shellWord(m.Module), "TOKEN", shellWord(token), "MEMBER", shellWord(m.Name))
}

// shellWord writes a word so that a shell reads it as one.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:=@", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
