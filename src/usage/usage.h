/*
 * usage.h
 *		The record of a key's use, and the buckets of limits: what the rest of the
 *		library calls.
 */
#ifndef USAGE_H
#define USAGE_H

#include "base/limiter.h"
#include "base/store.h"
#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"
#include "storage/lwlock.h"
#include "utils/inet.h"

typedef struct UsageKey
{
	Oid			database;		/* InvalidOid: of no entry */
	char		key_id[TOKEN_KEY_ID_LEN];
} UsageKey;

/* A key that is looked for in shared memory. */
typedef struct UsageTarget
{
	UsageKey	key;
	uint32		place;			/* where its chain begins */
	int			partition;
	LWLock	   *lock;			/* of the partition */
} UsageTarget;

/* The outcome of a verify of a genuine token. */
typedef enum UsageKind
{
	USAGE_USE,
	USAGE_DENIAL,
	USAGE_AFTER_END				/* a denial, because the key has ended */
} UsageKind;

#define USAGE_LIMIT_ID_LEN 16

/* Which bucket of which limit, and what it holds. */
typedef struct UsageBucket
{
	uint8		limit_id[USAGE_LIMIT_ID_LEN];	/* a uuid; zeros: the keys' own
												 * rate limit */
	char		family[TOKEN_KEY_ID_LEN + 1];	/* empty: all keys share it */
	TimestampTz since;			/* of a quota, when its period began; of a rate
								 * limit, its last reset */
	LimiterRate rate;			/* window 0: a quota */
	uint64		tenant;			/* a hash */
	UsageTarget target;			/* set by usage_bucket_aim() */
} UsageBucket;

typedef enum LimitResult
{
	LIMIT_PASSED,
	LIMIT_REACHED,
	LIMIT_UNAVAILABLE
} LimitResult;

/* What a bucket has after a take, or after a refusal. */
typedef struct UsageLevel
{
	int64		used;			/* units; of a quota with those that are reserved */
	int64		remaining;
	TimestampTz resets_at;		/* of a rate limit: when it will be full */
	int64		wait;			/* microseconds; of a rate limit that is reached */
} UsageLevel;

/* What shared memory has of a key, for the views. */
typedef struct UsageLook
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];
	char		environment[TOKEN_NAME_MAX + 1];	/* of the key */
	TimestampTz last_used_at;	/* 0: never */
	int64		use_count;
	/* Of usage_look() alone */
	uint64		tenant;			/* a hash */
	bool		has_addr;
	inet_struct addr;
} UsageLook;

/* Totals over all entries, for the view stats. */
typedef struct UsageTotals
{
	int64		tracked;
	int64		max_tracked;
	int64		pending;
	TimestampTz last_flush_at;	/* 0: none yet */
	TimestampTz pending_since;	/* start of the last round that wrote all */
} UsageTotals;

/* What keeps use from being written, for the view health. */
typedef struct UsageState
{
	bool		has_launcher;	/* one runs, or the server is starting it */
	bool		has_worker;		/* the server had a free worker the last time */
	bool		reaches_primary;	/* the last batch did */
} UsageState;

/* How a flush worker ended. */
typedef enum UsageEnd
{
	USAGE_FAILED,				/* or it died before its end */
	USAGE_BUSY,					/* another transaction held a lock */
	USAGE_UNSENT,				/* the primary did not take the use */
	USAGE_LEFT,					/* another worker must continue */
	USAGE_DONE
} UsageEnd;

/* Keys that a flush writes in one transaction. */
#define USAGE_BATCH 1000

/* memory.c */
extern void usage_shmem_request(void);
extern void usage_shmem_startup(void);
extern bool usage_is_shared(void);
extern bool usage_is_preloaded(void);

/* launcher.c */
extern void usage_register_launcher(void);
extern bool usage_launch(void);
extern bool usage_start_worker(BackgroundWorker *worker,
							   BackgroundWorkerHandle **handle);

extern bool usage_report_lost(bool log);
extern int	usage_room_pause(bool failed);
extern void usage_clear_needs(void);
extern bool usage_is_short(void);

/* record.c */
extern void usage_expect(UsageTarget *target, const char *key_id);
extern void usage_recall(const UsageTarget *target, StoredPlace *place);
extern void usage_record(const StoredKey *key, UsageKind kind,
						 inet *client_addr, TimestampTz now);
extern void usage_resign(const StoredKey *key, int pepper_id,
						 const uint8 *digest);
extern uint64 usage_tenant(text *tenant);

/* bucket.c */
extern void usage_bucket_aim(UsageBucket *bucket);
extern LimitResult usage_bucket_take(const UsageBucket *bucket, int64 cost,
									 TimestampTz now, UsageLevel *level);
extern void usage_bucket_look(const UsageBucket *bucket, TimestampTz now,
							  UsageLevel *level);

/* charge.c */
extern int	usage_charges(void);
extern LimitResult usage_charge(const UsageBucket *bucket, int64 cost,
								TimestampTz now, UsageLevel *level);
extern void usage_charge_use(int from);
extern void usage_charge_return(int from);

/* look.c */
extern bool usage_look(const char *key_id, UsageLook *look);
extern bool usage_look_is_of(const UsageLook *look, const char *tenant);
extern UsageLook *usage_look_all(const char *tenant, TimestampTz taken,
								 int *count);
extern void usage_totals(UsageTotals *totals);
extern int64 usage_lag(const UsageTotals *totals);
extern void usage_state(UsageState *state);

/* lost.c */
extern TimestampTz *usage_lost_times(void);
extern TimestampTz usage_lost_time(const TimestampTz *times, const char *key_id);

/* destination.c */
extern bool usage_goes_to_primary(void);
extern bool usage_is_discarded(void);

/* pending.c */
extern List *usage_begin_round(void);
extern void usage_end_round(TimestampTz began);
extern void usage_forget_database(Oid database);
extern bool usage_note_recovery(void);

/* room.c */
extern void usage_evict(void);
extern List *usage_crowded_databases(void);

/* flush.c */
extern int64 usage_flush_now(void);
extern void usage_flush_database(int batch, bool stay);
extern UsageEnd usage_end(void);
extern void usage_set_end(UsageEnd end);

/* Inserts events, given as audit_add() takes them. */
typedef void (*UsageTeller) (const char *events);

/* table.c */
extern void usage_set_teller(UsageTeller teller);

#endif
