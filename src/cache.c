/*
 * cache.c
 *		Keys that this backend has read.
 *
 * A verify that starts after a change was committed sees it: a trigger on
 * api_keys sends a relcache invalidation with each change, COMMIT puts it into
 * the shared queue before it returns to its client, and every look here takes
 * what is in the queue first.
 *
 * The callback may run at any time a relation is opened, so it only counts.
 * Flushing is done by the next look.  A row is kept only if no message was
 * taken since before its snapshot: else the message may have been about this
 * very row, and the snapshot too old to see it.  A row that the current
 * transaction wrote is never kept, since it may be rolled back.
 *
 * Memory: one context, reset by a flush.  What is returned is good until the
 * next call of a function here.  A row that does not fit ENTRY_MAX_SIZE, or
 * metadata that does not fit METADATA_MAX_SIZE, is read each time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "port/atomics.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "cache.h"
#include "compat.h"
#include "rk_apikeys.h"
#include "stats.h"

/* Bytes of a kept row without its metadata, and of the metadata. */
#define ENTRY_MAX_SIZE 1024
#define METADATA_MAX_SIZE 1024

/* A key id, or the first bytes of an imported key's digest: 16 hash well. */
typedef struct CacheKey
{
	char		kind;			/* DigestKind */
	char		id[15];
} CacheKey;

typedef struct CacheEntry
{
	CacheKey	key;			/* hash key */
	dlist_node	used;			/* in least_used */
	StoredKey  *row;
} CacheEntry;

static MemoryContext context = NULL;
static HTAB *entries = NULL;

/* The entries, the one used last at the head. */
static dlist_head least_used;
static int	count = 0;

/* Messages taken that may concern us, and how many of them are dealt with. */
static uint64 messages = 1;
static uint64 messages_done = 0;

/* The table that messages are about; looked up by a flush. */
static Oid	table = InvalidOid;

/* Whether there are imported keys: known since a message count, or not. */
static uint64 has_imported_since = 0;
static bool has_imported = false;

static void take_messages(void);
static CacheEntry *look(const CacheKey *key);
static const StoredKey *keep(const CacheKey *key, StoredKey *row,
							 uint64 messages_before);
static void drop_least_used(void);

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid == table || relid == InvalidOid || table == InvalidOid)
		messages++;
}

void
cache_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}

/*
 * The key with that id (TOKEN_KEY_ID_LEN bytes), or NULL if there is none.
 */
const StoredKey *
cache_find(const char *key_id)
{
	const StoredKey *row = cache_look(key_id);

	return row != NULL ? row : cache_read(key_id);
}

/* The same, if it is kept; NULL else. */
const StoredKey *
cache_look(const char *key_id)
{
	CacheKey	key = {DIGEST_NATIVE, {0}};
	CacheEntry *entry;

	memcpy(key.id, key_id, TOKEN_KEY_ID_LEN);
	take_messages();
	entry = look(&key);
	return entry != NULL ? entry->row : NULL;
}

/* The same, where cache_look() has just found that it is not kept. */
const StoredKey *
cache_read(const char *key_id)
{
	CacheKey	key = {DIGEST_NATIVE, {0}};
	uint64		before = messages;

	memcpy(key.id, key_id, TOKEN_KEY_ID_LEN);
	return keep(&key, store_find(table, key_id), before);
}

/* The imported key with that digest, or NULL if there is none. */
const StoredKey *
cache_find_imported(DigestKind kind, const uint8 *digest, int len)
{
	CacheKey	key;
	CacheEntry *entry;
	uint64		before;

	key.kind = kind;
	memcpy(key.id, digest, sizeof(key.id));
	take_messages();
	entry = look(&key);
	if (entry != NULL)
		return entry->row;
	before = messages;
	return keep(&key, store_find_imported(table, kind, digest, len), before);
}

/* Whether there is any imported key, so that a shapeless token is looked up. */
bool
cache_has_imported(void)
{
	uint64		before;
	bool		found;

	take_messages();
	if (has_imported_since == messages)
		return has_imported;
	before = messages;
	found = store_has_imported(table);
	/* One of this transaction's may be rolled back: it only costs a look. */
	if (before == messages)
	{
		has_imported = found;
		has_imported_since = before;
	}
	return found;
}

/* Take what is in the queue, and flush if it concerned us. */
static void
take_messages(void)
{
	/* AcceptInvalidationMessages reads its flag without a lock. */
	pg_memory_barrier();
	AcceptInvalidationMessages();
	if (messages_done == messages)
		return;
	messages_done = messages;
	if (context != NULL)
		MemoryContextReset(context);
	entries = NULL;
	count = 0;
	table = store_table("api_keys", true);
}

static CacheEntry *
look(const CacheKey *key)
{
	CacheEntry *entry;

	if (entries == NULL)
		return NULL;
	entry = hash_search(entries, key, HASH_FIND, NULL);
	if (entry != NULL)
	{
		stats_count(STATS_CACHE_HITS);
		dlist_move_head(&least_used, &entry->used);
	}
	return entry;
}

/* Keep a row that was just read, if that is right.  Returns the row. */
static const StoredKey *
keep(const CacheKey *key, StoredKey *row, uint64 messages_before)
{
	CacheEntry *entry;
	StoredKey  *copy;

	stats_count(STATS_CACHE_MISSES);
	if (row == NULL || messages != messages_before ||
		messages != messages_done || rk_apikeys_cache_size == 0 ||
		IsInParallelMode() ||
		TransactionIdIsCurrentTransactionId(row->xmin))
		return row;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "rk_apikeys cache",
										ALLOCSET_DEFAULT_SIZES);
	if (entries == NULL)
	{
		HASHCTL		ctl;

		ctl.keysize = sizeof(CacheKey);
		ctl.entrysize = sizeof(CacheEntry);
		ctl.hcxt = context;
		dlist_init(&least_used);
		entries = hash_create("rk_apikeys cache", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (row->size - row->metadata_size > ENTRY_MAX_SIZE ||
		row->metadata_size > METADATA_MAX_SIZE)
		return row;
	while (count >= rk_apikeys_cache_size)
		drop_least_used();
	copy = store_copy(row, context);
	entry = hash_search(entries, key, HASH_ENTER, NULL);
	entry->row = copy;
	dlist_push_head(&least_used, &entry->used);
	count++;
	return row;
}

static void
drop_least_used(void)
{
	CacheEntry *entry = dlist_tail_element(CacheEntry, used, &least_used);

	dlist_delete(&entry->used);
	pfree(entry->row);
	hash_search(entries, &entry->key, HASH_REMOVE, NULL);
	count--;
}
