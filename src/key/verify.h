/*
 * verify.h
 *		Whether a token is good, and why not.
 */
#ifndef VERIFY_H
#define VERIFY_H

#include "base/store.h"

extern const StoredKey *verify_genuine(text *token, bool *well_formed);
extern const StoredKey *verify_imported(const char *token, size_t len);

#endif
