/*
 * max_keys.h
 *		The lock of a tenant's number of rows.
 */
#ifndef MAX_KEYS_H
#define MAX_KEYS_H

extern uint32 max_keys_hash(text *tenant);
extern void max_keys_lock(const char *table, uint32 hash);

#endif
