/*
 * principal.h
 *		The key that this transaction has authenticated as.
 */
#ifndef PRINCIPAL_H
#define PRINCIPAL_H

#include "store.h"

/* Scope of a key that may manage keys. */
#define PRINCIPAL_MANAGE_SCOPE "apikeys:manage"

extern void principal_init(void);
extern bool principal_is_set(void);
extern const char *principal_key_id(void);
extern const StoredKey *principal_key(void);
extern bool principal_may_manage(void);
extern void principal_set(const char *key_id);

#endif
