/*
 * shared.h
 *		Usage, as the files of this folder share it.
 */
#ifndef SHARED_H
#define SHARED_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "usage/usage.h"

/* A power of two. */
#define USAGE_PARTITIONS 64

/*
 * So many eighths of the entries are in use when rounds begin to make room, and
 * when a tenant's share counts.  One tenant can fill the eighth between them
 * until the next round.
 */
#define USAGE_ROOM_EIGHTHS 6
#define USAGE_SHARE_EIGHTHS 7

/*
 * So many eighths of the entries are pending when the launcher is woken, and
 * when a flush that makes room may end.
 */
#define USAGE_SHORT_EIGHTHS 6
#define USAGE_EASY_EIGHTHS 4

/*
 * Counters of the entries of each tenant of a database.  A tenant has a counter
 * in each row, which it shares with the tenants of the same hash.  The lower of
 * the two is the tenant's count, or more.
 */
#define USAGE_SHARE_ROWS 2
#define USAGE_SHARES 1024

/*
 * The greatest count: a sender may claim any count, and this server's own
 * counts are added to the claim.
 */
#define USAGE_COUNT_MAX 4611686018427387904

/*
 * The state of an entry.  USAGE_CLEAN: no count is pending.  USAGE_DIRTY: the
 * entry was changed since a flush copied it.  Any other value is the stamp of
 * the flush that copied the entry last and may not have written it yet.
 *
 * A verify changes the counters first, then sets the state to dirty.  A flush
 * sets its stamp first, then reads the counters.  So the flush that turns its
 * own stamp into clean has copied every change made before that.
 */
#define USAGE_CLEAN 0
#define USAGE_DIRTY 1
#define USAGE_FIRST_STAMP 2

/*
 * What a bucket's entry has of a limit; guarded by the entry's mutex.  Of a
 * quota, use_count has the units that were used, and known_uses how many of them
 * are known.
 */
typedef struct BucketState
{
	LimiterState limiter;		/* of a rate limit */
	int64		reserved;		/* units that are neither used nor returned
								 * yet */
	uint64		serial;			/* of this entry; fixed */
} BucketState;

/* A line of the processor's cache. */
#define USAGE_ENTRY_ALIGN 64

/*
 * A record in shared memory: of a key's use, or of a limit's bucket.  It takes
 * three lines of the processor's cache, of which a verify touches two.  The key
 * id of a bucket is no key's: see bucket.c.
 */
typedef struct pg_attribute_aligned(USAGE_ENTRY_ALIGN) UsageEntry
{
	uint32		place;			/* of its chain's first; fixed */
	uint32		next;			/* in its chain, or among the free entries;
								 * guarded by their locks.  0: none */
	UsageKey	key;			/* fixed */
	pg_atomic_uint64 last_used_at;	/* TimestampTz, 0: never; only grows */
	pg_atomic_uint64 use_count; /* only grows */
	pg_atomic_uint64 denied_count;	/* only grows */
	pg_atomic_uint32 state;		/* as above */
	slock_t		mutex;			/* guards the fields below, except where said */
	pg_atomic_uint32 round;		/* the last one that wrote the entry; not
								 * guarded by the mutex */
	pg_atomic_uint32 ended_day; /* of the last denial of the ended key: days
								 * since 1999-12-31, UTC; 0: none; not guarded
								 * by the mutex */

	/* the second line */
	uint64		tenant;			/* hash of the key's tenant; fixed */
	union
	{
		struct
		{
			StoredPlace row;	/* where it was read */
			bool		has_addr;
			inet_struct addr;
			char		environment[TOKEN_NAME_MAX + 1];	/* of the key; fixed */
			int			pepper_id;	/* of the new digest; 0: there is none */
			uint8		digest[DIGEST_SHA256_LEN];	/* signed anew, to be stored */
		};
		struct
		{
			BucketState bucket;
			/* of the bucket; fixed */
			TimestampTz since;
			uint8		limit_id[USAGE_LIMIT_ID_LEN];
			char		family[TOKEN_KEY_ID_LEN + 1];
			bool		is_quota;
		};
	};
	int64		known_uses;		/* of the counts: what the table has, or a
								 * flush has taken */
	int64		known_denials;
} UsageEntry;

StaticAssertDecl(offsetof(UsageEntry, tenant) == USAGE_ENTRY_ALIGN &&
				 offsetof(UsageEntry, environment) <= 2 * USAGE_ENTRY_ALIGN &&
				 sizeof(UsageEntry) == 3 * USAGE_ENTRY_ALIGN,
				 "a verify touches two lines of an entry");

/* A use that was not recorded, of one of the keys of a hash; see lost.c. */
typedef struct LostUse
{
	TimestampTz at;				/* the latest one; 0: none */
	TimestampTz written;		/* what the tables have */
	Oid			database;		/* whose keys; LOST_SEVERAL: of several */
	uint32		round;			/* the last one that wrote it */
} LostUse;

#define LOST_USES 4096
#define LOST_SEVERAL PG_UINT32_MAX

/* What the launcher is woken for. */
#define USAGE_NEEDS_ROOM 1
#define USAGE_HAS_LOST 2

typedef struct UsageShared
{
	pg_atomic_uint32 tracked;	/* entries in use */
	pg_atomic_uint32 buckets;	/* of these, buckets of limits */
	pg_atomic_uint32 stamps;	/* of flushes */
	pg_atomic_uint32 overflow_used; /* entries not in place that were ever
									 * used; only grows */
	slock_t		mutex;			/* guards first_free, and growth of tracked,
								 * overflow_used and shares */
	uint32		first_free;		/* of the free entries; 0: none */
	pg_atomic_uint64 last_flush_at; /* a batch was committed */
	pg_atomic_uint64 pending_since; /* as in UsageTotals */
	pg_atomic_uint32 round;		/* of flushes; only grows */
	pg_atomic_uint32 end;		/* UsageEnd, of the last worker */
	pg_atomic_uint32 failing;	/* the last batch did not reach the primary */
	pg_atomic_uint32 busy;		/* the database whose busy flush was logged;
								 * InvalidOid: none */
	pg_atomic_uint32 standby;	/* the server was one at the last round */
	pg_atomic_uint32 no_worker; /* the server had no free worker the last time */
	pg_atomic_uint32 sweep_at;	/* where the next sweep begins */
	pg_atomic_uint64 serial;	/* of the last bucket that was made */
	/* entries in use, by tenant; hash.c's */
	pg_atomic_uint32 shares[USAGE_SHARE_ROWS][USAGE_SHARES];
	/* entries removed so far, by partition; changed under its lock */
	uint64		removed[USAGE_PARTITIONS];
	int			max_tracked;	/* fixed */
	int			tranche;		/* of the locks; fixed; 0 with preload */
	pg_atomic_uint32 launcher;	/* launcher.c's; 0: there is none */
	struct Latch *volatile latch;	/* of the launcher; NULL: there is none */
	pg_atomic_uint32 needs;		/* USAGE_NEEDS_ROOM, USAGE_HAS_LOST */
	pg_atomic_uint32 hand;		/* where a backend begins to look for a place:
								 * a word of the map; only grows */
	pg_atomic_uint32 has_lost;	/* a use was ever lost */
	slock_t		lost_mutex;		/* guards lost */
	LostUse		lost[LOST_USES];
} UsageShared;

/*
 * One key's usage, copied from shared memory.  Of a quota's bucket, the uses are
 * units.
 */
typedef struct UsageCopy
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];	/* or of the bucket */
	TimestampTz last_used_at;	/* 0: never */
	int64		use_count;
	int64		denied_count;
	int64		known_uses;		/* as in the entry, when it was copied */
	int64		known_denials;
	int64		table_uses;		/* once written: what the table has now */
	int64		table_denials;
	bool		has_addr;
	inet_struct addr;
	char		environment[TOKEN_NAME_MAX + 1];
	uint32		ended_day;		/* as in the entry */
	uint32		stamp;			/* of the flush that copied it */
	int			pepper_id;		/* of the new digest; 0: there is none */
	uint8		digest[DIGEST_SHA256_LEN];
	bool		is_quota;
	/* of a quota's bucket: as in the entry */
	TimestampTz since;
	uint8		limit_id[USAGE_LIMIT_ID_LEN];
	char		family[TOKEN_KEY_ID_LEN + 1];
} UsageCopy;

/* Whose entries are copied. */
typedef struct UsageWanted
{
	Oid			database;
	bool		keys;			/* of keys alone, not of buckets */
	const uint64 *tenant;		/* a hash; NULL: of any tenant */
	uint32		round;			/* entries that it wrote are left out; 0: none */
} UsageWanted;

/* Whether a walk wants an entry; called without a lock, then again with it. */
typedef bool (*UsageFilter) (UsageEntry *entry, const void *arg);

/* A walk over entries, the pending ones or all; "at" is 0 at first. */
typedef struct UsageWalk
{
	bool		pending;
	UsageFilter wanted;			/* NULL: any */
	const void *arg;			/* its argument */
	bool		alone;			/* no other process is there: take no locks */
	uint32		at;				/* the next to be looked at */
	LWLock	   *lock;			/* result: of the entry that was found */
} UsageWalk;

/* A bounded look for clean entries. */
typedef struct UsageHand
{
	uint32		at;				/* the next to be looked at */
	int			words;			/* of the map, that may still be looked at */
} UsageHand;

/* The locks, and their wait event. */
#define USAGE_TRANCHE "RkApikeysUsage"

/* hash.c; NULL without shared memory */
extern UsageShared *usage_shared;
extern LWLockPadded *usage_locks;

extern Size usage_hash_size(int max_tracked);
extern bool usage_hash_startup(int max_tracked);
extern void usage_hash_place(char *memory, int max_tracked);
extern void usage_hash_init(int max_tracked);
extern void usage_hash_target(UsageTarget *target, Oid database,
							  const char *key_id);
extern void usage_hash_prefetch(const UsageTarget *target);
extern UsageEntry *usage_hash_find(const UsageTarget *target);
extern bool usage_hash_is_filled(int eighths);
extern uint32 usage_hash_eighths(int eighths);
extern void usage_hash_check_room(void);
extern void usage_hash_need(uint32 needs);
extern bool usage_hash_has_room(Oid database, uint64 tenant);
extern UsageEntry *usage_hash_add(const UsageTarget *target, uint64 tenant,
								  bool fair);
extern void usage_hash_remove(UsageEntry *entry);
extern bool usage_hash_may_take(Oid database, uint64 tenant);
extern uint32 usage_hash_pending(int words);
extern void usage_hash_take_hand(UsageHand *hand, int words);
extern UsageEntry *usage_hash_next_clean(UsageHand *hand);
extern UsageEntry *usage_hash_next(UsageWalk *walk);
extern bool usage_is_bucket(const char *key_id);
extern bool usage_is_rate_bucket(UsageEntry *entry);
extern void usage_hash_set_dirty(UsageEntry *entry);
extern bool usage_hash_set_stamp(UsageEntry *entry, uint32 stamp);
extern bool usage_hash_set_clean(UsageEntry *entry, uint32 stamp);

/* file.c */
extern void usage_file_save(int code, Datum arg);
extern void usage_file_load(void);

/* launcher.c */
extern void usage_start_launcher(void);

/* lost.c */
extern void usage_lost_note(Oid database, const char *key_id, TimestampTz at);
extern void usage_lost_load(int number, Oid database, TimestampTz at);
extern bool usage_lost_next(int *number, LostUse *lost);
extern int	usage_lost_copies(Oid database, uint32 round, UsageCopy *copies);
extern List *usage_lost_databases(List *databases);
extern void usage_lost_forget(Oid database);
extern bool usage_is_lost(const UsageCopy *copy);
extern int	usage_lost_number(const UsageCopy *copy);
extern bool usage_lost_take(Oid database, UsageCopy *copy);
extern void usage_lost_settle(const UsageCopy *copy);

/* outbox.c */
#define USAGE_SENDER_LEN 16

extern Size usage_outbox_size(void);
extern void usage_outbox_startup(void);
extern void usage_outbox_place(char *memory);
extern void usage_outbox_init(void);
extern Oid	usage_outbox_database(void);
extern int	usage_outbox_count(void);
extern UsageCopy *usage_outbox_copies(void);
extern const uint8 *usage_outbox_sender(void);
extern int64 usage_outbox_batch(void);
extern bool usage_outbox_is_in_doubt(void);
extern void usage_outbox_begin(Oid database);
extern void usage_outbox_add(const UsageCopy *copy);
extern void usage_outbox_set_in_doubt(void);
extern UsageCopy *usage_outbox_remove_last(void);
extern void usage_outbox_discard(Oid database);

/* record.c */

/* What a new entry begins with: read without a lock, then set under the lock. */
typedef struct UsageSeed
{
	void		(*read) (void *arg);
	void		(*set) (UsageEntry *entry, void *arg);
	void	   *arg;
} UsageSeed;

extern UsageEntry *usage_find_or_make(const UsageTarget *target,
									  uint64 tenant, const UsageSeed *seed);

/* bucket.c */

/* A charge of a transaction: what it has reserved of a bucket. */
typedef struct BucketCharge
{
	UsageTarget target;
	int64		cost;
	bool		is_quota;
	uint64		serial;			/* of the entry */
	LimiterTake take;			/* of a rate limit */
	SubTransactionId subid;		/* that reserved it; charge.c's */
} BucketCharge;

extern LimitResult usage_bucket_reserve(const UsageBucket *bucket, int64 cost,
										TimestampTz now, UsageLevel *level,
										BucketCharge *charge);
extern void usage_bucket_name(UsageCopy *copy);
extern void usage_bucket_use(const BucketCharge *charge);
extern int64 usage_bucket_return(const BucketCharge *charge, TimestampTz now);

/* fallback.c */
extern void usage_record_in_table(const StoredKey *key, inet *client_addr,
								  TimestampTz now);

/* pending.c */
extern void usage_copy_entry(UsageEntry *entry, UsageCopy *copy, bool take);
extern UsageCopy *usage_copy_entries(const UsageWanted *wanted, bool pending,
									 uint32 stamp, int *count);
extern UsageCopy *usage_pending(Oid database, bool round, int *count);
extern bool usage_is_pending(UsageEntry *entry);
extern void usage_forget(Oid database, const char *key_id);
extern bool usage_set_busy(Oid database, bool busy);

/* taken.c */
extern bool usage_take(Oid database, UsageCopy *copy);
extern void usage_give_back(Oid database, const UsageCopy *copy);
extern void usage_settle(Oid database, const UsageCopy *copy);
extern void usage_forget_gone(Oid database, const UsageCopy *copy);
#define USAGE_BUSY_HERE (-1)

extern int	usage_flush_here(const UsageCopy *copies, int count);
extern void usage_follow_at_commit(const UsageCopy *copies, int count,
								   const bool *flushed);

/* table.c */
extern bool usage_lock_flushes(bool wait);
extern int	usage_flush(UsageCopy *copies, int count, bool *flushed,
						bool *gone);

/* room.c */
extern bool usage_is_held(UsageEntry *entry, TimestampTz now);
extern bool usage_give_way(Oid database, uint64 tenant);
extern void usage_sweep(void);

/* send.c */
extern UsageEnd usage_send(const UsageCopy *copies, int count);
extern int	usage_deliver(const UsageCopy *copies, int count);
extern void usage_delivered(void);

/* receive.c */
extern void usage_receive(const uint8 *sender, int64 batch, UsageCopy *copies,
						  int count, bool *flushed, bool *gone);

#endif
