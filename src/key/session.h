/*
 * session.h
 *		Whose keys this session manages, and as which key.
 */
#ifndef SESSION_H
#define SESSION_H

#include "base/store.h"

/* Scope of a key that may manage keys. */
#define SESSION_MANAGE_SCOPE "apikeys:manage"

extern const StoredKey *session_principal(void);
extern bool session_may_manage(void);
extern char *session_tenant(void);
extern char *session_environment(void);
extern bool session_sees_all_tenants(void);
extern bool session_is_member(void);
extern bool session_sees_own_keys(void);

#endif
