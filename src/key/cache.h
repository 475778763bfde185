/*
 * cache.h
 *		Keys that have been read before.
 */
#ifndef CACHE_H
#define CACHE_H

#include "base/store.h"
#include "usage/usage.h"

/*
 * A look for a native key, in steps, so that the memory that the next one will
 * touch is fetched while the caller does other things: look, recall, get.
 */
typedef struct CacheLook
{
	const char *key_id;			/* TOKEN_KEY_ID_LEN bytes */
	const StoredKey *kept;		/* by this backend; NULL: it has none */
	UsageTarget target;
	StoredPlace place;			/* of the row by shared memory, once recalled */
} CacheLook;

extern void cache_init(void);
extern void cache_tell_change(Relation api_keys);
extern void cache_look(CacheLook *look, const char *key_id);
extern void cache_recall(CacheLook *look);
extern const StoredKey *cache_get(CacheLook *look);
extern const StoredKey *cache_find(const char *key_id);
extern const StoredKey *cache_find_imported(DigestKind kind,
											const uint8 *digest, int len);
extern bool cache_has_imported(void);
extern bool cache_has_limits(void);
extern uint64 cache_moment(void);
extern bool cache_may_keep(uint64 moment);

#endif
