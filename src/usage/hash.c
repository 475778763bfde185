/*
 * hash.c
 *		The table of entries in shared memory: find, add, remove, walk.
 *
 * The table is a hash of a fixed size.  The first entry of each chain is in
 * place: it stands where the hash says.  The other entries of a chain stand in
 * an area of their own.  The table is our own code for two reasons.  A verify
 * can have the processor fetch an entry while it does other work, and a walk
 * over all entries is a walk through an array.
 *
 * A map has a bit for each entry that may be pending, so that a flush skips the
 * others.  The bit is set after the entry's state is, and cleared before the
 * state is looked at again.
 *
 * The entries of each tenant are counted, so that no tenant takes all of them.
 *
 * Locking: the lock of a partition guards its chains and their members: shared
 * to find an entry, exclusive to add or remove one.  A spinlock, taken under a
 * partition's lock, guards the list of free entries and the decision who gets
 * one.  A walk looks at an entry without a lock, and again under the lock if
 * the entry seems to be wanted.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage/shared.h"

UsageShared *usage_shared = NULL;
LWLockPadded *usage_locks = NULL;

static UsageEntry *entries = NULL;
static pg_atomic_uint32 *pending_map = NULL;

static void init_shared(int max_tracked);
static void init_map(int max_tracked);
static void count_entry(const UsageKey *key, uint64 tenant, int32 difference);
static pg_atomic_uint32 *share_of(Oid database, uint64 tenant, int row);
static bool is_wanted(const UsageWalk *walk, UsageEntry *entry);
static void set_pending_bit(UsageEntry *entry);
static void clear_pending_bit(UsageEntry *entry);
static uint32 slots_used(void);

/*
 * Words of the map from which the number of pending entries is estimated; they
 * lie apart, because the parts of the table are not equally full.
 */
#define SAMPLE_WORDS 32

/* One in so many entries that become pending looks whether room is short. */
#define LOOK_EVERY 64

/* Half are in place; the other half is enough for any set of keys. */
static Size
entry_count(int max_tracked)
{
	return mul_size(max_tracked, 2);
}

static Size
entries_size(int max_tracked)
{
	/* One more, for the alignment of the first. */
	return mul_size(entry_count(max_tracked) + 1, sizeof(UsageEntry));
}

/* Words of the map. */
static Size
map_words(int max_tracked)
{
	return entry_count(max_tracked) / 32 + 1;
}

Size
usage_hash_size(int max_tracked)
{
	return add_size(CACHELINEALIGN(sizeof(UsageShared)),
					add_size(CACHELINEALIGN(entries_size(max_tracked)),
							 CACHELINEALIGN(map_words(max_tracked) * sizeof(uint32))));
}

/*
 * Make the table, or find it.  Return whether it is new.  Runs under
 * AddinShmemInitLock.
 */
bool
usage_hash_startup(int max_tracked)
{
	bool		found;

	usage_shared = ShmemInitStruct("rk_apikeys usage", sizeof(UsageShared),
								   &found);
	if (!found)
		init_shared(max_tracked);
	max_tracked = usage_shared->max_tracked;
	/* The system zeroes the memory; writing to it would take all of it. */
	entries = (UsageEntry *)
		TYPEALIGN(USAGE_ENTRY_ALIGN,
				  ShmemInitStruct("rk_apikeys usage entries",
								  entries_size(max_tracked), &found));
	pending_map = ShmemInitStruct("rk_apikeys usage pending",
								  map_words(max_tracked) * sizeof(uint32), &found);
	if (!found)
		init_map(max_tracked);
	return !found;
}

/*
 * Use a piece of memory of usage_hash_size() bytes, which begins at the begin of
 * a page.
 */
void
usage_hash_place(char *memory, int max_tracked)
{
	usage_shared = (UsageShared *) memory;
	memory += CACHELINEALIGN(sizeof(UsageShared));
	entries = (UsageEntry *) TYPEALIGN(USAGE_ENTRY_ALIGN, memory);
	memory += CACHELINEALIGN(entries_size(max_tracked));
	pending_map = (pg_atomic_uint32 *) memory;
}

/* Make the table in its memory, which is zeroed. */
void
usage_hash_init(int max_tracked)
{
	init_shared(max_tracked);
	init_map(max_tracked);
}

static void
init_shared(int max_tracked)
{
	memset(usage_shared, 0, sizeof(UsageShared));
	SpinLockInit(&usage_shared->mutex);
	pg_atomic_init_u32(&usage_shared->tracked, 0);
	pg_atomic_init_u32(&usage_shared->buckets, 0);
	pg_atomic_init_u32(&usage_shared->needs, 0);
	pg_atomic_init_u32(&usage_shared->hand, 0);
	SpinLockInit(&usage_shared->lost_mutex);
	pg_atomic_init_u32(&usage_shared->has_lost, 0);
	pg_atomic_init_u32(&usage_shared->overflow_used, 0);
	pg_atomic_init_u32(&usage_shared->stamps, USAGE_FIRST_STAMP);
	pg_atomic_init_u32(&usage_shared->round, 1);
	pg_atomic_init_u32(&usage_shared->end, USAGE_DONE);
	pg_atomic_init_u32(&usage_shared->failing, 0);
	pg_atomic_init_u32(&usage_shared->busy, InvalidOid);
	pg_atomic_init_u32(&usage_shared->standby, 0);
	pg_atomic_init_u32(&usage_shared->no_worker, 0);
	pg_atomic_init_u32(&usage_shared->launcher, 0);
	pg_atomic_init_u32(&usage_shared->sweep_at, 0);
	pg_atomic_init_u64(&usage_shared->serial, 0);
	for (int row = 0; row < USAGE_SHARE_ROWS; row++)
		for (int i = 0; i < USAGE_SHARES; i++)
			pg_atomic_init_u32(&usage_shared->shares[row][i], 0);
	pg_atomic_init_u64(&usage_shared->last_flush_at, 0);
	pg_atomic_init_u64(&usage_shared->pending_since,
					   (uint64) GetCurrentTimestamp());
	usage_shared->max_tracked = max_tracked;
}

static void
init_map(int max_tracked)
{
	for (Size i = 0; i < map_words(max_tracked); i++)
		pg_atomic_init_u32(&pending_map[i], 0);
}

/* Set the target of a search: a key of a database. */
void
usage_hash_target(UsageTarget *target, Oid database, const char *key_id)
{
	uint32		hash = (uint32) token_hash_key_id(key_id, database);

	target->key.database = database;
	memcpy(target->key.key_id, key_id, TOKEN_KEY_ID_LEN);
	target->place = (uint32) (((uint64) hash * usage_shared->max_tracked) >> 32);
	target->partition = target->place % USAGE_PARTITIONS;
	target->lock = &usage_locks[target->partition].lock;
}

/* Have the processor fetch the entry, if it is in place. */
void
usage_hash_prefetch(const UsageTarget *target)
{
	UsageEntry *entry = &entries[target->place];

	__builtin_prefetch(entry);
	__builtin_prefetch(&entry->row);
}

/* Return the entry, or NULL.  The partition is locked. */
UsageEntry *
usage_hash_find(const UsageTarget *target)
{
	UsageEntry *entry = &entries[target->place];

	while (memcmp(&entry->key, &target->key, sizeof(UsageKey)) != 0)
	{
		if (entry->next == 0)
			return NULL;
		entry = &entries[entry->next];
	}
	return entry;
}

/* Return whether so many eighths of the entries are in use. */
bool
usage_hash_is_filled(int eighths)
{
	return pg_atomic_read_u32(&usage_shared->tracked) >= usage_hash_eighths(eighths);
}

/* Return so many eighths of the entries. */
uint32
usage_hash_eighths(int eighths)
{
	return usage_shared->max_tracked - usage_shared->max_tracked / 8 * (8 - eighths);
}

/*
 * Return whether a tenant of a database may have another entry.  While the table
 * is nearly full, the tenant must have fewer entries than are free.  So it
 * leaves at least half of the free entries to the others.
 */
bool
usage_hash_has_room(Oid database, uint64 tenant)
{
	uint32		tracked = pg_atomic_read_u32(&usage_shared->tracked);
	uint32		max_tracked = (uint32) usage_shared->max_tracked;

	if (tracked >= max_tracked)
		return false;
	if (!usage_hash_is_filled(USAGE_SHARE_EIGHTHS))
		return true;
	for (int row = 0; row < USAGE_SHARE_ROWS; row++)
		if (pg_atomic_read_u32(share_of(database, tenant, row)) < max_tracked - tracked)
			return true;
	return false;
}

/*
 * Return a new entry of a tenant for a target that was not found, or NULL if
 * there is no room.  With fair, the tenant gets no more than its share.  All
 * fields except key, place and tenant are zero.  The partition is locked
 * exclusively.
 */
UsageEntry *
usage_hash_add(const UsageTarget *target, uint64 tenant, bool fair)
{
	UsageEntry *entry = &entries[target->place];
	uint32		next = entry->next;
	uint32		number = 0;
	bool		has_room;

	SpinLockAcquire(&usage_shared->mutex);
	has_room = fair ? usage_hash_has_room(target->key.database, tenant) :
		pg_atomic_read_u32(&usage_shared->tracked) < (uint32) usage_shared->max_tracked;
	if (has_room)
	{
		count_entry(&target->key, tenant, 1);
		if (OidIsValid(entry->key.database))
		{
			number = usage_shared->first_free;
			if (number != 0)
				usage_shared->first_free = entries[number].next;
			else
				number = usage_shared->max_tracked +
					pg_atomic_fetch_add_u32(&usage_shared->overflow_used, 1);
		}
	}
	SpinLockRelease(&usage_shared->mutex);
	if (!has_room)
		return NULL;
	if (number != 0)
	{
		entry->next = number;
		entry = &entries[number];
	}
	memset(entry, 0, sizeof(UsageEntry));
	SpinLockInit(&entry->mutex);
	entry->place = target->place;
	entry->next = next;
	entry->tenant = tenant;
	/* A walk that sees the key sees the place. */
	pg_write_barrier();
	entry->key = target->key;
	return entry;
}

/* Remove an entry.  The partition is locked exclusively. */
void
usage_hash_remove(UsageEntry *entry)
{
	uint32		number = entry - entries;
	UsageEntry *before = &entries[entry->place];

	count_entry(&entry->key, entry->tenant, -1);
	/* Before another entry gets the slot. */
	clear_pending_bit(entry);
	entry->key.database = InvalidOid;
	usage_shared->removed[entry->place % USAGE_PARTITIONS]++;
	/* The first entry of a chain stays in place, free. */
	if (entry == before)
		return;
	while (before->next != number)
		before = &entries[before->next];
	before->next = entry->next;

	SpinLockAcquire(&usage_shared->mutex);
	entry->next = usage_shared->first_free;
	usage_shared->first_free = number;
	SpinLockRelease(&usage_shared->mutex);
}

/* Count an entry of a tenant that is added (1) or removed (-1). */
static void
count_entry(const UsageKey *key, uint64 tenant, int32 difference)
{
	pg_atomic_fetch_add_u32(&usage_shared->tracked, difference);
	if (usage_is_bucket(key->key_id))
		pg_atomic_fetch_add_u32(&usage_shared->buckets, difference);
	for (int row = 0; row < USAGE_SHARE_ROWS; row++)
		pg_atomic_fetch_add_u32(share_of(key->database, tenant, row), difference);
}

/*
 * Return whether a tenant of a database may take the place of another tenant's
 * entry.  The rule is that of usage_hash_has_room(), where clean entries count as
 * free, except buckets, because they may be held.
 */
bool
usage_hash_may_take(Oid database, uint64 tenant)
{
	uint32		kept = usage_hash_pending(SAMPLE_WORDS) +
		pg_atomic_read_u32(&usage_shared->buckets);
	uint32		max_tracked = (uint32) usage_shared->max_tracked;

	for (int row = 0; row < USAGE_SHARE_ROWS; row++)
		if (kept < max_tracked &&
			pg_atomic_read_u32(share_of(database, tenant, row)) < max_tracked - kept)
			return true;
	return false;
}

/*
 * Return how many entries are pending, estimated from so many words of the map
 * (0: all words).
 */
uint32
usage_hash_pending(int words)
{
	uint32		total = slots_used() / 32 + 1;
	uint32		step = words == 0 ? 1 : total / words + 1;
	uint32		first = step == 1 ? 0 : pg_atomic_read_u32(&usage_shared->hand) % step;
	uint64		found = 0;
	uint32		looked = 0;

	for (uint32 i = first; i < total; i += step, looked++)
		found += pg_popcount32(pg_atomic_read_u32(&pending_map[i]));
	return looked == 0 ? 0 : (uint32) (found * total / looked);
}

/* Begin a look for clean entries at so many words of the map. */
void
usage_hash_take_hand(UsageHand *hand, int words)
{
	hand->words = words;
	hand->at = pg_atomic_fetch_add_u32(&usage_shared->hand, 1) %
		(slots_used() / 32 + 1) * 32;
}

/*
 * Return the next entry that seems to be clean, without a lock; NULL at the end
 * of the look.
 */
UsageEntry *
usage_hash_next_clean(UsageHand *hand)
{
	uint32		end = slots_used();

	while (hand->words > 0)
	{
		uint32		word = ~pg_atomic_read_u32(&pending_map[hand->at / 32]) >> hand->at % 32;
		UsageEntry *entry = NULL;

		if (word != 0)
		{
			hand->at += pg_rightmost_one_pos32(word);
			if (hand->at < end)
				entry = &entries[hand->at];
			hand->at++;
		}
		else
			hand->at = (hand->at / 32 + 1) * 32;
		if (hand->at >= end)
			hand->at = 0;
		if (hand->at % 32 == 0)
			hand->words--;
		if (entry != NULL && OidIsValid(*(volatile Oid *) &entry->key.database))
			return entry;
	}
	return NULL;
}

/* Return the end of the entries that were ever used. */
static uint32
slots_used(void)
{
	return usage_shared->max_tracked +
		pg_atomic_read_u32(&usage_shared->overflow_used);
}

/* Return the counter of a tenant of a database in that row. */
static pg_atomic_uint32 *
share_of(Oid database, uint64 tenant, int row)
{
	uint64		hash = hash_combine64(tenant, database);

	return &usage_shared->shares[row][(row == 0 ? hash : hash >> 32) % USAGE_SHARES];
}

/*
 * Return the next entry of a walk, with its partition locked shared; the caller
 * releases the lock.  Return NULL at the end.  A walk may miss entries that are
 * added meanwhile.
 */
UsageEntry *
usage_hash_next(UsageWalk *walk)
{
	uint32		end = slots_used();

	while (walk->at < end)
	{
		UsageEntry *entry;
		uint32		place;

		if (walk->pending)
		{
			uint32		word = pg_atomic_read_u32(&pending_map[walk->at / 32]) >>
				walk->at % 32;

			if (word == 0)
			{
				walk->at = (walk->at / 32 + 1) * 32;
				continue;
			}
			walk->at += pg_rightmost_one_pos32(word);
		}
		entry = &entries[walk->at++];
		place = *(volatile uint32 *) &entry->place;
		if (!is_wanted(walk, entry))
			continue;
		if (walk->alone)
			return entry;
		walk->lock = &usage_locks[place % USAGE_PARTITIONS].lock;
		LWLockAcquire(walk->lock, LW_SHARED);
		/* The slot may hold another entry by now. */
		if (entry->place == place && is_wanted(walk, entry))
			return entry;
		LWLockRelease(walk->lock);
	}
	return NULL;
}

static bool
is_wanted(const UsageWalk *walk, UsageEntry *entry)
{
	return OidIsValid(*(volatile Oid *) &entry->key.database) &&
		(!walk->pending || pg_atomic_read_u32(&entry->state) != USAGE_CLEAN) &&
		(walk->wanted == NULL || walk->wanted(entry, walk->arg));
}

/*
 * Return whether this is the key id of a bucket.  The id of a key has only ASCII
 * characters.
 */
bool
usage_is_bucket(const char *key_id)
{
	return IS_HIGHBIT_SET(key_id[0]);
}

/* Return whether an entry is the bucket of a rate limit, which is never pending. */
bool
usage_is_rate_bucket(UsageEntry *entry)
{
	return usage_is_bucket(entry->key.key_id) && !entry->is_quota;
}

/* Make an entry pending, after it was changed. */
void
usage_hash_set_dirty(UsageEntry *entry)
{
	pg_memory_barrier();
	if (pg_atomic_read_u32(&entry->state) == USAGE_DIRTY)
		return;
	if (pg_atomic_exchange_u32(&entry->state, USAGE_DIRTY) == USAGE_CLEAN)
		set_pending_bit(entry);
}

/*
 * Set the stamp of a flush that is about to copy an entry.  Return whether the
 * entry is pending.
 */
bool
usage_hash_set_stamp(UsageEntry *entry, uint32 stamp)
{
	uint32		state = pg_atomic_read_u32(&entry->state);

	/* A clean entry must stay clean, because its bit in the map is off. */
	do
	{
		if (state == USAGE_CLEAN)
			return false;
	} while (!pg_atomic_compare_exchange_u32(&entry->state, &state, stamp));
	return true;
}

/*
 * Make an entry clean after the flush with that stamp has written it.  Do
 * nothing if the entry was changed, or copied by another flush, meanwhile.  Return
 * false if another flush has copied it.
 */
bool
usage_hash_set_clean(UsageEntry *entry, uint32 stamp)
{
	if (!pg_atomic_compare_exchange_u32(&entry->state, &stamp, USAGE_CLEAN))
		return stamp == USAGE_DIRTY || stamp == USAGE_CLEAN;
	clear_pending_bit(entry);
	if (pg_atomic_read_u32(&entry->state) != USAGE_CLEAN)
		set_pending_bit(entry);
	return true;
}

static void
set_pending_bit(UsageEntry *entry)
{
	uint32		number = entry - entries;

	pg_atomic_fetch_or_u32(&pending_map[number / 32],
						   (uint32) 1 << number % 32);
	if (number % LOOK_EVERY == 0)
		usage_hash_check_room();
}

static void
clear_pending_bit(UsageEntry *entry)
{
	uint32		number = entry - entries;

	pg_atomic_fetch_and_u32(&pending_map[number / 32],
							~((uint32) 1 << number % 32));
}

/* Wake the launcher if so many entries are pending that room runs short. */
void
usage_hash_check_room(void)
{
	if (usage_hash_is_filled(USAGE_ROOM_EIGHTHS) &&
		usage_hash_pending(SAMPLE_WORDS) >= usage_hash_eighths(USAGE_SHORT_EIGHTHS))
		usage_hash_need(USAGE_NEEDS_ROOM);
}

/* Wake the launcher, once, until it has looked at the needs. */
void
usage_hash_need(uint32 needs)
{
	Latch	   *latch = usage_shared->latch;

	if ((pg_atomic_read_u32(&usage_shared->needs) & needs) == needs ||
		(pg_atomic_fetch_or_u32(&usage_shared->needs, needs) & needs) == needs)
		return;
	if (latch != NULL)
		SetLatch(latch);
}
