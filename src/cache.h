/*
 * cache.h
 *		Keys that this backend has read.
 */
#ifndef CACHE_H
#define CACHE_H

#include "store.h"

extern void cache_init(void);
extern const StoredKey *cache_find(const char *key_id);
extern const StoredKey *cache_look(const char *key_id);
extern const StoredKey *cache_read(const char *key_id);
extern const StoredKey *cache_find_imported(DigestKind kind,
											const uint8 *digest, int len);
extern bool cache_has_imported(void);

#endif
