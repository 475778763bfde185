/*
 * cache.c
 *		Keys that have been read before: by this backend, or by any.
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
 * What this backend has not kept, shared memory may have in brief, from the
 * last time that any backend read the row: store.c says when that is as good.
 * With cache_size 0 each verify reads the row.
 *
 * A table of sets: a key has its place in one of the four of its set, the one
 * used last in front, and a look at a set is a look at one line of the
 * processor's cache.  So that keys which come once do not drive out those that
 * come often, a row takes another's place only when it is read for the second
 * time within a while.
 *
 * Memory: rows live in a context that a flush resets; a set that is older than
 * the last flush is empty.  What is returned is good until the next call of a
 * function here.  A row that does not fit ENTRY_MAX_SIZE, or
 * metadata that does not fit METADATA_MAX_SIZE, is read each time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "base/settings.h"
#include "base/stats.h"
#include "compat.h"
#include "key/cache.h"

/* Bytes of a kept row without its metadata, and of the metadata. */
#define ENTRY_MAX_SIZE 1024
#define METADATA_MAX_SIZE 1024

#define SET_SIZE 4
#define READ_ONCE_SIZE 3

/* 64 bytes. */
typedef struct CacheSet
{
	StoredKey  *rows[SET_SIZE]; /* the one used last first; NULLs at the end */
	uint32		hashes[SET_SIZE];	/* of the rows' key ids or digests */
	uint32		read_once[READ_ONCE_SIZE];	/* hashes of keys without a place */
	uint32		flush;			/* the flush after which all this was put here */
} CacheSet;

StaticAssertDecl(sizeof(CacheSet) == 64 || sizeof(void *) < 8,
				 "a set is one line of the processor's cache");

static CacheSet *sets = NULL;
static void *sets_memory = NULL;	/* where they were allocated */
static uint32 set_mask = 0;

/* The rows, and how many times they were thrown away. */
static MemoryContext context = NULL;
static uint32 flushes = 0;

/* The rows that are kept, and the cache_size that the table was made for. */
static int	count = 0;
static int	made_for = 0;

/* Messages taken that may concern us, and how many of them are dealt with. */
static uint64 messages = 1;
static uint64 messages_done = 0;

/* The table that messages are about; looked up by a flush. */
static Oid	table = InvalidOid;

/* Whether there are imported keys: known since a message count, or not. */
static uint64 has_imported_since = 0;
static bool has_imported = false;

static void take_messages(void);
static CacheSet *find_set(uint32 hash);
static void make_sets(void);
static void drop_sets(void);
static uint32 hash_native(const char *key_id);
static uint32 hash_imported(DigestKind kind, const uint8 *digest);
static StoredKey *use_row(CacheSet *set, int i);
static bool was_read_before(uint32 hash);
static bool same_place(const StoredPlace *a, const StoredPlace *b);
static const StoredKey *keep(uint32 hash, StoredKey *row,
							 uint64 messages_before);

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

/* The key with that id (TOKEN_KEY_ID_LEN bytes), or NULL if there is none. */
const StoredKey *
cache_find(const char *key_id)
{
	CacheLook	look;

	cache_look(&look, key_id);
	cache_recall(&look);
	return cache_get(&look, false);
}

/* Whether this backend has kept it. */
void
cache_look(CacheLook *look, const char *key_id)
{
	look->key_id = key_id;
	look->kept = NULL;
	usage_expect(&look->target, key_id);
	take_messages();
	if (sets != NULL)
	{
		uint32		hash = hash_native(key_id);
		CacheSet   *set = find_set(hash);

		for (int i = 0; i < SET_SIZE && set->rows[i] != NULL; i++)
			if (set->hashes[i] == hash &&
				set->rows[i]->digest_kind == DIGEST_NATIVE &&
				memcmp(set->rows[i]->key_id, key_id, TOKEN_KEY_ID_LEN) == 0)
			{
				look->kept = use_row(set, i);
				break;
			}
	}
}

/* If it has not: what shared memory has of it. */
void
cache_recall(CacheLook *look)
{
	if (look->kept != NULL)
		return;
	usage_recall(&look->target, &look->brief);
	store_prefetch(&look->brief.place);
}

/* The key, or NULL if there is none; in brief, if that is good and will do. */
const StoredKey *
cache_get(CacheLook *look, bool brief_will_do)
{
	static StoredKey recalled;
	uint64		before = messages;
	StoredKey  *row;

	if (look->kept != NULL)
		return look->kept;
	if (brief_will_do && settings_cache_size > 0 &&
		store_brief_holds(table, &look->brief) &&
		!was_read_before(hash_native(look->key_id)))
	{
		stats_count(STATS_CACHE_HITS);
		store_expand(&look->brief, look->key_id, &recalled);
		return &recalled;
	}
	row = store_find(table, look->key_id, &look->brief.place);
	/* Nothing new of it is to be noted. */
	if (row != NULL && same_place(&row->place, &look->brief.place))
		row->place.buffer = InvalidBuffer;
	return keep(hash_native(look->key_id), row, before);
}

/* The imported key with that digest, or NULL if there is none. */
const StoredKey *
cache_find_imported(DigestKind kind, const uint8 *digest, int len)
{
	uint32		hash = hash_imported(kind, digest);
	uint64		before;

	take_messages();
	if (sets != NULL)
	{
		CacheSet   *set = find_set(hash);

		for (int i = 0; i < SET_SIZE && set->rows[i] != NULL; i++)
			if (set->hashes[i] == hash && set->rows[i]->digest_kind == kind &&
				digest_matches(set->rows[i]->digest, digest, len))
				return use_row(set, i);
	}
	before = messages;
	return keep(hash, store_find_imported(table, kind, digest, len), before);
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
	uint64		taken;

	/* AcceptInvalidationMessages reads its flag without a lock. */
	pg_memory_barrier();
	AcceptInvalidationMessages();
	if (made_for != settings_cache_size)
		drop_sets();
	else if (messages_done == messages)
		return;
	taken = messages;
	if (context != NULL)
		MemoryContextReset(context);
	count = 0;
	flushes++;
	store_forget_file();
	table = store_table("api_keys", true);
	/* Not before: that may raise, and then all this is still to be done. */
	messages_done = taken;
}

/* Twice as many places as rows: keys are not spread over the sets evenly. */
static void
make_sets(void)
{
	uint32		many = pg_nextpower2_32(Max(settings_cache_size * 2 / SET_SIZE, 1));

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "rk_apikeys cache",
										ALLOCSET_DEFAULT_SIZES);
	sets_memory = MemoryContextAllocExtended(TopMemoryContext,
											 many * sizeof(CacheSet) + PG_CACHE_LINE_SIZE,
											 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	sets = (CacheSet *) CACHELINEALIGN(sets_memory);
	set_mask = many - 1;
}

/* For a table of another size. */
static void
drop_sets(void)
{
	if (sets != NULL)
		pfree(sets_memory);
	sets = NULL;
	made_for = settings_cache_size;
}

/* The set of a key; empty, if a flush has come over it. */
static CacheSet *
find_set(uint32 hash)
{
	CacheSet   *set = &sets[hash & set_mask];

	if (set->flush != flushes)
	{
		memset(set, 0, sizeof(CacheSet));
		set->flush = flushes;
	}
	return set;
}

static uint32
hash_native(const char *key_id)
{
	return (uint32) token_hash_key_id(key_id, 0);
}

static uint32
hash_imported(DigestKind kind, const uint8 *digest)
{
	return hash_bytes_uint32(kind) ^ hash_bytes(digest, DIGEST_SHA256_LEN);
}

/* The row there, which is now the one used last. */
static StoredKey *
use_row(CacheSet *set, int i)
{
	StoredKey  *row = set->rows[i];
	uint32		hash = set->hashes[i];

	stats_count(STATS_CACHE_HITS);
	for (; i > 0; i--)
	{
		set->rows[i] = set->rows[i - 1];
		set->hashes[i] = set->hashes[i - 1];
	}
	set->rows[0] = row;
	set->hashes[0] = hash;
	return row;
}

/*
 * Whether a key without a place was asked for not long ago.  If not, notes that
 * it is now.
 */
static bool
was_read_before(uint32 hash)
{
	uint32	   *read_once;

	if (sets == NULL)
		make_sets();
	read_once = &find_set(hash)->read_once[(hash >> 24) % READ_ONCE_SIZE];
	if (*read_once == hash)
		return true;
	*read_once = hash;
	return false;
}

/* Whether two places that are known are the same. */
static bool
same_place(const StoredPlace *a, const StoredPlace *b)
{
	return a->buffer != InvalidBuffer && a->buffer == b->buffer &&
		a->block == b->block && a->offset == b->offset &&
		a->start == b->start && a->lsn == b->lsn;
}

/* Keep a row that was just read, if that is right.  Returns the row. */
static const StoredKey *
keep(uint32 hash, StoredKey *row, uint64 messages_before)
{
	CacheSet   *set;
	int			i = 0;

	stats_count(STATS_CACHE_MISSES);
	if (row == NULL || messages != messages_before ||
		messages != messages_done || made_for == 0 ||
		IsInParallelMode() ||
		TransactionIdIsCurrentTransactionId(row->xmin) ||
		row->size - row->metadata_size > ENTRY_MAX_SIZE ||
		row->metadata_size > METADATA_MAX_SIZE)
		return row;

	if (sets == NULL)
		make_sets();
	set = find_set(hash);
	while (i < SET_SIZE && set->rows[i] != NULL)
		i++;
	if (i == SET_SIZE || count >= made_for)
	{
		/* If there is none in this set, none goes. */
		if (i == 0 || !was_read_before(hash))
			return row;
		i--;
		pfree(set->rows[i]);
		count--;
	}
	set->rows[i] = store_copy(row, context);
	set->rows[i]->place.buffer = InvalidBuffer;
	set->hashes[i] = hash;
	count++;
	return row;
}
