/*
 * verify.h
 *		Whether a token is good, and why not.
 */
#ifndef VERIFY_H
#define VERIFY_H

#include "stats.h"
#include "store.h"

extern StatsCounter verify_state(const StoredKey *key, TimestampTz now);
extern bool verify_scope_granted(ArrayType *scopes, text *wanted);
extern const StoredKey *verify_genuine(text *token, bool brief_will_do,
									   bool *well_formed);

#endif
