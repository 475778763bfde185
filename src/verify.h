/*
 * verify.h
 *		Whether a token is good, and why not.
 */
#ifndef VERIFY_H
#define VERIFY_H

#include "store.h"

extern const StoredKey *verify_genuine(text *token, bool *well_formed);

#endif
