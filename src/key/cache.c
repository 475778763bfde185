/*
 * cache.c
 *		Keys that were read before: by this backend, or by any.
 *
 * A verify that starts after a change was committed sees the change.  A trigger
 * on api_keys sends a relcache invalidation with each change, COMMIT puts the
 * message into the shared queue before it returns to its client, and every look
 * here first takes the messages from the queue.
 *
 * The message names the type _change, which nobody uses.  A message that named
 * api_keys would make every backend build the table's relcache entry and the
 * plans of its queries anew.  A transaction sends one message, however many
 * keys it changes, because its changes become visible at one moment.  From then
 * on to its end its own backend keeps nothing.
 *
 * The message is sent only while both triggers that settle a change are ENABLE
 * ALWAYS.  ALTER TABLE ... ENABLE TRIGGER, as pg_restore --disable-triggers
 * runs it, leaves them at ENABLE, and then a change that replication applies
 * sends none.  So a flush looks at the triggers, and while one of them is not
 * ENABLE ALWAYS nothing is kept.  A change of a trigger is a message too.
 *
 * The callback may run whenever a relation is opened, so it only counts.  The
 * next look flushes.  A row is kept only if no message was taken since before
 * its snapshot.  Otherwise the message may have been about this row, and the
 * snapshot too old to see the change.  A row that the current transaction wrote
 * is never kept, because it may be rolled back.
 *
 * For a key that this backend has not kept, shared memory may have the place of
 * the row, which the last read by any backend left.  While the page there is
 * unchanged, as store.c says, the row is read from it.  With cache_size 0 each
 * verify takes a snapshot.
 *
 * The cache is a table of sets.  A key has its place in one of the four of its
 * set, and a look at a set is a look at one line of the processor's cache.  The
 * key that was used last stands in front.  In a full set, a new key replaces the
 * key that was not used for the longest time.  Of keys that were read cheaply, in
 * unchanged pages, only one in KEEP_ONE_IN is kept, at random.  So a key that is
 * used often is soon kept, and keys that are used once take little memory and time
 * and drive few others out.
 *
 * Memory: rows live in a context that a flush resets.  A set that is older than
 * the last flush is empty.  A result is valid until the next call of a function
 * here.  A row larger than ENTRY_MAX_SIZE, or with metadata larger than
 * METADATA_MAX_SIZE, is read each time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
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

/*
 * A flush frees the blocks of the rows.  Larger ones would go back to the system,
 * and cost a page fault for each page when rows are kept again.
 */
#define BLOCK_MAX_SIZE (64 * 1024)

#define SET_SIZE 4

#define KEEP_ONE_IN 16

/* 64 bytes. */
typedef struct CacheSet
{
	StoredKey  *rows[SET_SIZE]; /* the one used last first; NULLs at the end */
	uint32		hashes[SET_SIZE];	/* of the rows' key ids or digests */
	uint64		flush;			/* the flush after which the set was filled */
	uint32		unused[2];
} CacheSet;

StaticAssertDecl(sizeof(CacheSet) == 64 || sizeof(void *) < 8,
				 "a set is one line of the processor's cache");

static CacheSet *sets = NULL;
static void *sets_memory = NULL;	/* where they were allocated */
static uint32 set_mask = 0;

/* The rows, and how many times they were thrown away. */
static MemoryContext context = NULL;
static uint64 flushes = 0;

/* The cache_size that the table was made for. */
static int	made_for = 0;

/* Messages taken that may concern us, and how many of them are handled. */
static uint64 messages = 1;
static uint64 messages_done = 0;

/* What messages are about; looked up by a flush. */
static Oid	table = InvalidOid;
static Oid	limits = InvalidOid;	/* InvalidOid: an earlier release's SQL */
static Oid	carrier = InvalidOid;	/* of the type that a change names */

/* Whether the next flush is to look these up, for more than a key has changed. */
static bool table_is_stale = true;

/* Whether each change of the table sends a message; looked up by a flush. */
static bool changes_are_told = false;

/*
 * The level of nesting whose end decides on the message that this transaction
 * has sent; 0 if none was sent.
 */
static int	told_level = 0;

/* Whether there are imported keys, and limits, as of a count of messages. */
static uint64 has_imported_since = 0;
static bool has_imported = false;
static uint64 has_limits_since = 0;
static bool has_limits = false;

static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
							   SubTransactionId parentSubid, void *arg);
static void take_messages(void);
static bool may_keep(uint64 messages_before);
static CacheSet *find_set(uint32 hash);
static void make_sets(void);
static void drop_sets(void);
static uint32 hash_native(const char *key_id);
static uint32 hash_imported(DigestKind kind, const uint8 *digest);
static StoredKey *use_row(CacheSet *set, int i);
static void move_to_front(CacheSet *set, int i);
static bool same_place(const StoredPlace *a, const StoredPlace *b);
static void drop_row(StoredKey *row);
static void keep(uint32 hash, const StoredKey *row, uint64 messages_before,
				 bool is_cheap);

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid == carrier && relid != InvalidOid)
		messages++;
	else if (relid == table || relid == limits || relid == InvalidOid || table == InvalidOid ||
			 carrier == InvalidOid)
	{
		messages++;
		table_is_stale = true;
	}
}

void
cache_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}

/*
 * Tell every session, at COMMIT, that a row of api_keys has changed.  Without the
 * type, as in an earlier release, the message names the table.
 */
void
cache_tell_change(Relation api_keys)
{
	static bool registered = false;
	Oid			type;

	if (told_level > 0)
		return;
	if (!registered)
	{
		RegisterXactCallback(end_transaction, NULL);
		RegisterSubXactCallback(end_subtransaction, NULL);
		registered = true;
	}
	type = store_table("_change", true);
	if (OidIsValid(type))
		CacheInvalidateRelcacheByRelid(type);
	else
		CacheInvalidateRelcache(api_keys);
	told_level = GetCurrentTransactionNestLevel();
}

/* XactCallback */
static void
end_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		told_level = 0;
}

/* SubXactCallback: a rollback drops the messages that were sent inside. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
				   SubTransactionId parentSubid, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (told_level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		told_level = 0;
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		told_level = level - 1;
}

/* Return the key with that id (TOKEN_KEY_ID_LEN bytes), or NULL. */
const StoredKey *
cache_find(const char *key_id)
{
	CacheLook	look;

	cache_look(&look, key_id);
	cache_recall(&look);
	return cache_get(&look);
}

/* First step: set look->kept if this backend has kept the key. */
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

/* Second step: otherwise get what shared memory has of the key. */
void
cache_recall(CacheLook *look)
{
	if (look->kept != NULL)
		return;
	usage_recall(&look->target, &look->place);
	store_prefetch(&look->place);
}

/* Last step: return the key, or NULL. */
const StoredKey *
cache_get(CacheLook *look)
{
	uint64		before = messages;
	StoredKey  *row = NULL;
	bool		unchanged;

	if (look->kept != NULL)
		return look->kept;
	if (settings_cache_size > 0)
		row = store_find_unchanged(table, look->key_id, &look->place);
	unchanged = row != NULL;
	stats_count(unchanged ? STATS_CACHE_HITS : STATS_CACHE_MISSES);
	if (!unchanged)
	{
		row = store_find(table, look->key_id, &look->place);
		/* The entry has this place already. */
		if (row != NULL && same_place(&row->place, &look->place))
			row->place.buffer = InvalidBuffer;
	}
	/* The limits of a key are read with it, unless it is kept. */
	keep(hash_native(look->key_id), row, before, unchanged && !cache_has_limits());
	return row;
}

/* Return the imported key with that digest, or NULL. */
const StoredKey *
cache_find_imported(DigestKind kind, const uint8 *digest, int len)
{
	uint32		hash = hash_imported(kind, digest);
	StoredKey  *row;
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
	stats_count(STATS_CACHE_MISSES);
	row = store_find_imported(table, kind, digest, len);
	keep(hash, row, before, false);
	return row;
}

/* Return whether any imported key exists, so that any string may be a token. */
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
	/* If a key of this transaction is rolled back, that costs a look only. */
	if (may_keep(before))
	{
		has_imported = found;
		has_imported_since = before;
	}
	return found;
}

/*
 * Return whether there may be limits, by the messages that the last look at a key
 * took.
 */
bool
cache_has_limits(void)
{
	uint64		before = messages;
	bool		found;

	if (has_limits_since == messages)
		return has_limits;
	found = store_has_limits(limits);
	if (may_keep(before))
	{
		has_limits = found;
		has_limits_since = before;
	}
	return found;
}

/*
 * Return the moment before a read, for cache_may_keep(): the count of messages
 * taken.
 */
uint64
cache_moment(void)
{
	return messages;
}

/* Return whether what was read since a moment may be kept until the next message. */
bool
cache_may_keep(uint64 moment)
{
	return may_keep(moment);
}

/* Take the messages from the queue, and flush if one may concern us. */
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
	flushes++;
	if (table_is_stale)
	{
		store_forget_file();
		table = store_table("api_keys", true);
		limits = store_table("limits", true);
		carrier = store_table("_change", true);
		changes_are_told = store_changes_are_told(table);
		table_is_stale = messages != taken;
	}
	/* Last, because these may raise, and the flush is then to be redone. */
	messages_done = taken;
}

/* Whether what was read since a count of messages may be kept. */
static bool
may_keep(uint64 messages_before)
{
	return messages == messages_before && messages == messages_done &&
		changes_are_told && told_level == 0;
}

/*
 * Make the table, with more places than keys, because sets do not fill evenly:
 * cache_size <= places <= 2 * cache_size, but at least one set.
 */
static void
make_sets(void)
{
	uint32		many = pg_prevpower2_32(Max(settings_cache_size * 2 / SET_SIZE, 1));

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "rk_apikeys cache", 0,
										ALLOCSET_DEFAULT_INITSIZE, BLOCK_MAX_SIZE);
	sets_memory = MemoryContextAllocExtended(TopMemoryContext,
											 many * sizeof(CacheSet) + PG_CACHE_LINE_SIZE,
											 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	sets = (CacheSet *) CACHELINEALIGN(sets_memory);
	set_mask = many - 1;
}

/* Drop the table, to make one of another size. */
static void
drop_sets(void)
{
	if (sets != NULL)
		pfree(sets_memory);
	sets = NULL;
	made_for = settings_cache_size;
}

/* Return the set of a key, emptied if there was a flush since. */
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

/* Return the row there, and move it to the front. */
static StoredKey *
use_row(CacheSet *set, int i)
{
	stats_count(STATS_CACHE_HITS);
	move_to_front(set, i);
	return set->rows[0];
}

static void
move_to_front(CacheSet *set, int i)
{
	StoredKey  *row = set->rows[i];
	uint32		hash = set->hashes[i];

	for (; i > 0; i--)
	{
		set->rows[i] = set->rows[i - 1];
		set->hashes[i] = set->hashes[i - 1];
	}
	set->rows[0] = row;
	set->hashes[0] = hash;
}

/* Return whether two places are the same; false if they are not known. */
static bool
same_place(const StoredPlace *a, const StoredPlace *b)
{
	return a->buffer != InvalidBuffer && a->buffer == b->buffer &&
		a->block == b->block && a->offset == b->offset &&
		a->lsn == b->lsn;
}

static void
drop_row(StoredKey *row)
{
	if (row->limits != NULL)
		pfree(row->limits);
	pfree(row);
}

/*
 * Keep a copy of a row (NULL: none) that was just read, if it may be kept; seldom
 * if the row can be read again cheaply.
 */
static void
keep(uint32 hash, const StoredKey *row, uint64 messages_before, bool is_cheap)
{
	CacheSet   *set;
	StoredKey  *copy;
	int			i = 0;

	if (is_cheap && pg_prng_uint32(&pg_global_prng_state) % KEEP_ONE_IN != 0)
		return;
	if (row == NULL || !may_keep(messages_before) || made_for == 0 ||
		IsInParallelMode() ||
		TransactionIdIsCurrentTransactionId(row->xmin) ||
		row->size - row->metadata_size > ENTRY_MAX_SIZE ||
		row->metadata_size > METADATA_MAX_SIZE)
		return;

	if (sets == NULL)
		make_sets();
	set = find_set(hash);
	while (i < SET_SIZE && set->rows[i] != NULL)
		i++;
	copy = store_copy(row, context);
	copy->place.buffer = InvalidBuffer;
	copy->limits = NULL;
	if (i == SET_SIZE)
		drop_row(set->rows[--i]);
	set->rows[i] = copy;
	set->hashes[i] = hash;
	move_to_front(set, i);
}
