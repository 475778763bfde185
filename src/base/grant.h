/*
 * grant.h
 *		What a key's row grants: its state, its scopes, its addresses.
 */
#ifndef GRANT_H
#define GRANT_H

#include "base/store.h"
#include "base/verdict.h"
#include "utils/inet.h"

/* The longest list of scopes that a call may require, in bytes. */
#define GRANT_SCOPES_MAX_LEN 8192

extern Verdict grant_state(const StoredKey *key, TimestampTz now);
extern bool grant_scope(ArrayType *scopes, text *wanted);
extern bool grant_is_list(text *list);
extern bool grant_scopes(ArrayType *scopes, text *list);
extern bool grant_networks(ArrayType *cidrs, ArrayType *wanted);
extern void grant_host(inet *address, inet_struct *host);
extern bool grant_address(ArrayType *cidrs, inet *address);

#endif
