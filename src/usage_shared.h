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
#include "utils/hsearch.h"

#define USAGE_PARTITIONS 16

typedef struct UsageKey
{
	Oid			database;
	char		key_id[TOKEN_KEY_ID_LEN];
} UsageKey;

typedef struct UsageEntry
{
	UsageKey	key;			/* hash key; fixed */
	uint64		tenant;			/* hash of the key's tenant; fixed */
	pg_atomic_uint64 last_used_at;	/* TimestampTz, 0: never; only grows */
	pg_atomic_uint64 use_count; /* only grows */
	pg_atomic_uint64 denied_count;	/* only grows */
	pg_atomic_uint64 arrival;	/* the limiter's */
	/* what the last flush wrote; written by one flusher at a time */
	pg_atomic_uint64 flushed_at;
	pg_atomic_uint64 flushed_uses;
	pg_atomic_uint64 flushed_denials;
	pg_atomic_uint32 pepper_id; /* of the new digest; 0: there is none */
	slock_t		mutex;			/* guards the three below */
	bool		has_addr;
	inet_struct addr;
	uint8		digest[DIGEST_SHA256_LEN];	/* signed anew, to be stored */
} UsageEntry;

typedef struct UsageShared
{
	pg_atomic_uint32 tracked;	/* entries */
	pg_atomic_uint64 last_flush_at; /* a batch was committed */
	pg_atomic_uint64 flush_began;
	/* entries removed so far, by partition; changed under its lock */
	uint64		removed[USAGE_PARTITIONS];
	int			max_tracked;	/* fixed */
} UsageShared;

/* NULL without preload. */
extern UsageShared *usage_shared;
extern HTAB *usage_entries;
extern LWLockPadded *usage_locks;

/* usage_pending.c */
extern bool usage_is_pending(UsageEntry *entry);

/* usage_file.c */
extern void usage_file_save(int code, Datum arg);
extern void usage_file_load(void);

#endif
