/*
 * usage.h
 *		The record of a key's use.
 */
#ifndef USAGE_H
#define USAGE_H

#include "storage/lwlock.h"
#include "store.h"
#include "utils/inet.h"

/* Keys that a flush writes in one statement. */
#define USAGE_BATCH 1000

/*
 * Where sums end: a sender may claim any count, and what is counted here comes
 * on top.
 */
#define USAGE_COUNT_MAX 4611686018427387904

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

/* What a verify came to. */
typedef enum UsageKind
{
	USAGE_USE,
	USAGE_DENIAL
} UsageKind;

typedef enum LimitResult
{
	LIMIT_PASSED,
	LIMIT_REACHED,
	LIMIT_UNAVAILABLE
} LimitResult;

/* One key's usage, copied from shared memory. */
typedef struct UsageCopy
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];
	TimestampTz last_used_at;	/* 0: never */
	int64		use_count;
	int64		denied_count;
	int64		known_uses;		/* what the table had of them by then */
	int64		known_denials;
	int64		table_uses;		/* once written: what the table has now */
	int64		table_denials;
	bool		has_addr;
	inet_struct addr;
	char		environment[TOKEN_NAME_MAX + 1];
	uint32		stamp;			/* of the flush that copied it */
	int			pepper_id;		/* of the new digest; 0: there is none */
	uint8		digest[DIGEST_SHA256_LEN];
} UsageCopy;

typedef struct UsageTotals
{
	int64		tracked;
	int64		max_tracked;
	int64		pending;
	TimestampTz last_flush_at;	/* 0: none yet */
	TimestampTz pending_since;	/* the last round that wrote all began */
} UsageTotals;

/* What became of a worker. */
typedef enum UsageEnd
{
	USAGE_FAILED,				/* or it has not come to its end */
	USAGE_LEFT,					/* another is to go on */
	USAGE_DONE
} UsageEnd;

/*
 * A batch on its way to another server, from before it is sent until what came
 * of it is known.  One for all databases, used by one flush worker at a time.
 */
typedef struct UsageOutbox
{
	uint8		sender[16];		/* who numbers the batches: since this start */
	int64		batch;
	Oid			database;
	bool		in_doubt;		/* it was sent, and may be written */
	int			count;			/* 0: nothing is on its way */
	UsageCopy	copies[USAGE_BATCH];
} UsageOutbox;

/* usage.c, usage_pending.c */
extern void usage_shmem_request(void);
extern void usage_shmem_startup(void);
extern bool usage_is_shared(void);
extern void usage_expect(UsageTarget *target, const char *key_id);
extern void usage_recall(const UsageTarget *target, StoredBrief *brief);
extern void usage_record(const StoredKey *key, UsageKind kind,
						 inet *client_addr, TimestampTz now);
extern void usage_resign(const StoredKey *key, int pepper_id,
						 const uint8 *digest);
extern LimitResult usage_limit(const StoredKey *key, int cost,
							   TimestampTz now, int64 *wait);
extern UsageCopy *usage_pending(Oid database, bool round, int *count);
extern UsageCopy *usage_unseen(Oid database, const uint64 *tenant,
							   TimestampTz taken, int *count);
extern List *usage_pending_databases(void);
extern void usage_forget(Oid database, const char *key_id);
extern void usage_write_all(void);
extern void usage_begin_round(void);
extern void usage_end_round(TimestampTz began);
extern UsageEnd usage_end(void);
extern void usage_set_end(UsageEnd end);
extern void usage_evict(void);
extern void usage_totals(UsageTotals *totals);

/* usage_taken.c */
extern UsageOutbox *usage_outbox;	/* NULL where there is no shared memory */
extern void usage_outbox_init(void);
extern bool usage_take(Oid database, UsageCopy *copy);
extern void usage_give_back(Oid database, const UsageCopy *copy);
extern void usage_settle(Oid database, const UsageCopy *copy);
extern void usage_forget_gone(Oid database, const UsageCopy *copy);
extern int	usage_flush_here(const UsageCopy *copies, int count);
extern void usage_follow_at_commit(const UsageCopy *copies, int count,
								   const bool *flushed);
extern bool usage_set_failing(bool failing);

/* usage_registry.c */
extern bool usage_is_preloaded(void);
extern bool usage_launch(void);

/* usage_table.c */
extern bool usage_lock_flushes(bool wait);
extern void usage_record_in_table(const StoredKey *key, inet *client_addr,
								  TimestampTz now);
extern int	usage_flush(UsageCopy *copies, int count, bool *flushed,
						bool *gone);

#endif
