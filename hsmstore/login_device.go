package hsmstore

/*
#cgo linux LDFLAGS: -ldl

#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

// The beginning of CK_FUNCTION_LIST (PKCS#11 v2.40 §3.6), up to what is called.
struct function_list {
	unsigned char version[2];
	void *before[18]; // C_Initialize to C_SetOperationState
	unsigned long (*C_Login)(unsigned long session, unsigned long user, unsigned char *pin, unsigned long length);
};

enum { NOT_LOADED = 1, NO_LIST };

// login_without_pin calls C_Login with a NULL PIN. The module must be loaded already;
// trouble is not 0 if it could not be called.
static unsigned long login_without_pin(const char *module, unsigned long session, unsigned long user, int *trouble)
{
	void *lib = dlopen(module, RTLD_LAZY | RTLD_NOLOAD);
	if (lib == NULL) {
		*trouble = NOT_LOADED;
		return 0;
	}
	unsigned long (*get)(struct function_list **) = (unsigned long (*)(struct function_list **))dlsym(lib, "C_GetFunctionList");
	struct function_list *list = NULL;
	unsigned long rv = 0;
	if (get == NULL || (rv = get(&list)) != 0 || list == NULL)
		*trouble = NO_LIST;
	else
		rv = list->C_Login(session, user, NULL, 0);
	dlclose(lib);
	return rv;
}
*/
import "C"

import (
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// loginAtDevice logs the SO in without a PIN: C_Login with NULL lets the token ask
// persons at the device itself (PKCS#11 v2.40 §5.6.7), and blocks until they have
// given what the vendor's quorum wants, or refused. miekg/pkcs11 cannot pass NULL.
func (t *token) loginAtDevice(module string) error {
	if t.user != noUser {
		if err := t.m.Logout(t.session); err != nil {
			return classify("C_Logout", err)
		}
		t.user = noUser
	}
	path := C.CString(module)
	defer C.free(unsafe.Pointer(path))
	var trouble C.int
	rv := pkcs11.Error(C.login_without_pin(path, C.ulong(t.session), C.ulong(pkcs11.CKU_SO), &trouble))
	switch {
	case trouble != 0:
		return faultf(exitModule, "%w: C_GetFunctionList of %s gives nothing (%d, %#x)", ErrModule, module, trouble, uint(rv))
	case slices.Contains(quorumRefused, rv):
		return faultf(exitPIN, "%w: the vendor's quorum was refused or broken off at the device (C_Login: %s)", ErrPIN, explain(rv).name)
	case rv != pkcs11.CKR_OK:
		return classify("C_Login of the SO at the device", rv)
	}
	t.user = pkcs11.CKU_SO
	return nil
}

// quorumRefused are what modules answer when persons say no or do not come.
var quorumRefused = []pkcs11.Error{pkcs11.CKR_CANCEL, pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_FUNCTION_REJECTED}
