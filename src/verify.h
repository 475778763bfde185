/*
 * verify.h
 *		Whether a token is good, and why not.
 */
#ifndef VERIFY_H
#define VERIFY_H

#include "store.h"

extern StoredKey *verify_genuine(text *token, bool *well_formed);

#endif
