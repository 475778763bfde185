/*
 * usage_shared.h
 *		The layout of usage in shared memory: for the files usage*.c alone.
 */
#ifndef USAGE_SHARED_H
#define USAGE_SHARED_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "usage.h"

/* A power of two. */
#define USAGE_PARTITIONS 64

/*
 * Whether an entry is pending, that is, holds what no flush has written: clean;
 * dirty, if it was changed since a flush copied it; else the stamp of the flush
 * that has copied it, and perhaps not written yet.  Counters are changed before
 * this is set to dirty, and read after it is set to a stamp; so what a stamp is
 * cleaned of was copied by that flush.
 */
#define USAGE_CLEAN 0
#define USAGE_DIRTY 1
#define USAGE_FIRST_STAMP 2

/* Four lines of the processor's cache, of which a verify touches one or two. */
typedef struct pg_attribute_aligned(256) UsageEntry
{
	uint32		place;			/* of its chain's first; fixed */
	uint32		next;			/* in its chain, or the free ones; their locks.
								 * 0: none */
	UsageKey	key;			/* fixed */
	pg_atomic_uint64 last_used_at;	/* TimestampTz, 0: never; only grows */
	pg_atomic_uint64 use_count; /* only grows */
	pg_atomic_uint64 denied_count;	/* only grows */
	pg_atomic_uint32 state;		/* as above */
	slock_t		mutex;			/* guards what is below */
	StoredBrief brief;			/* the row as it was read */

	/* the third line */
	pg_atomic_uint64 arrival;	/* the limiter's; not the mutex */
	pg_atomic_uint32 round;		/* of flushes, that wrote it; not the mutex */
	uint64		tenant;			/* hash of the key's tenant; fixed */
	char		environment[TOKEN_NAME_MAX + 1];	/* of the key; fixed */
	bool		has_addr;
	inet_struct addr;
	int			pepper_id;		/* of the new digest; 0: there is none */
	uint8		digest[DIGEST_SHA256_LEN];	/* signed anew, to be stored */
	int64		known_uses;		/* what of the counts the table has, or a flush */
	int64		known_denials;	/* has taken */
} UsageEntry;

StaticAssertDecl(offsetof(UsageEntry, arrival) == 128,
				 "a verify touches two lines of an entry");

typedef struct UsageShared
{
	pg_atomic_uint32 tracked;	/* entries in use */
	pg_atomic_uint32 stamps;	/* of flushes */
	pg_atomic_uint32 overflow_used; /* entries not in place that have ever
									 * been; only grows */
	slock_t		mutex;			/* guards first_free, and that growth */
	uint32		first_free;		/* of those that are free again; 0: none */
	pg_atomic_uint64 last_flush_at; /* a batch was committed */
	pg_atomic_uint64 pending_since; /* as in UsageTotals */
	pg_atomic_uint32 round;		/* of flushes; only grows */
	pg_atomic_uint32 end;		/* UsageEnd, of the last worker */
	pg_atomic_uint32 failing;	/* the last batch did not reach the primary */
	/* entries removed so far, by partition; changed under its lock */
	uint64		removed[USAGE_PARTITIONS];
	int			max_tracked;	/* fixed */
	int			tranche;		/* of the locks; fixed; 0 with preload */
	pg_atomic_uint32 launcher;	/* usage_registry.c's; not with preload */
} UsageShared;

/* Whether a walk wants an entry; called without a lock, then again with it. */
typedef bool (*UsageFilter) (UsageEntry *entry, const void *arg);

/* A walk over entries, those that are pending or all; at 0 at first. */
typedef struct UsageWalk
{
	bool		pending;
	UsageFilter wanted;			/* NULL: any */
	const void *arg;			/* its argument */
	bool		alone;			/* nobody else is there: take no locks */
	uint32		at;				/* the next to be looked at */
	LWLock	   *lock;			/* result: of the entry that was found */
} UsageWalk;

/* The locks, and their wait event. */
#define USAGE_TRANCHE "RkApikeysUsage"

/* NULL where there is none. */
extern UsageShared *usage_shared;
extern LWLockPadded *usage_locks;

/* usage_hash.c */
extern Size usage_hash_size(int max_tracked);
extern bool usage_hash_startup(int max_tracked);
extern void usage_hash_place(char *memory, int max_tracked);
extern void usage_hash_init(int max_tracked);
extern void usage_hash_target(UsageTarget *target, Oid database,
							  const char *key_id);
extern void usage_hash_prefetch(const UsageTarget *target);
extern UsageEntry *usage_hash_find(const UsageTarget *target);
extern UsageEntry *usage_hash_add(const UsageTarget *target);
extern void usage_hash_remove(UsageEntry *entry);
extern UsageEntry *usage_hash_next(UsageWalk *walk);
extern void usage_hash_set_dirty(UsageEntry *entry);
extern bool usage_hash_set_stamp(UsageEntry *entry, uint32 stamp);
extern void usage_hash_set_clean(UsageEntry *entry, uint32 stamp);

/* usage_pending.c */
extern void usage_copy_entry(UsageEntry *entry, UsageCopy *copy, bool take);

/* usage_registry.c */
extern bool usage_attach(void);

/* usage_file.c */
extern void usage_file_save(int code, Datum arg);
extern void usage_file_load(void);

#endif
