/*
 * outbox.c
 *		The batch on its way to another server.
 *
 * The outbox holds a batch from before it is sent until its outcome is known.
 * There is one outbox for all databases.  send.c fills and empties it.
 *
 * Locking: none.  One flush worker runs at a time, and only a worker changes the
 * outbox, or the launcher while no worker runs.  A session that flushes reads
 * the database alone.
 */
#include "postgres.h"

#include "storage/shmem.h"

#include "compat.h"
#include "usage/shared.h"

typedef struct UsageOutbox
{
	uint8		sender[USAGE_SENDER_LEN];		/* who numbers the batches, since this start */
	int64		batch;			/* the number of the last one */
	Oid			database;
	bool		in_doubt;		/* it was sent, and may be written */
	int			count;			/* 0: no batch is on its way */
	UsageCopy	copies[USAGE_BATCH];
} UsageOutbox;

/* NULL without shared memory. */
static UsageOutbox *outbox = NULL;

Size
usage_outbox_size(void)
{
	return MAXALIGN(sizeof(UsageOutbox));
}

/* Make the outbox, or find it.  Runs under AddinShmemInitLock. */
void
usage_outbox_startup(void)
{
	bool		found;

	outbox = ShmemInitStruct("rk_apikeys outbox", sizeof(UsageOutbox), &found);
	if (!found)
		usage_outbox_init();
}

/* Use a piece of memory of usage_outbox_size() bytes; NULL: none. */
void
usage_outbox_place(char *memory)
{
	outbox = (UsageOutbox *) memory;
}

/* Make an empty outbox in its memory. */
void
usage_outbox_init(void)
{
	memset(outbox, 0, sizeof(UsageOutbox));
	if (!pg_strong_random(outbox->sender, sizeof(outbox->sender)))
		elog(ERROR, "could not generate a random number");
}

/* Return the database of the batch that is on its way; InvalidOid: no batch. */
Oid
usage_outbox_database(void)
{
	return outbox->count > 0 ? outbox->database : InvalidOid;
}

int
usage_outbox_count(void)
{
	return outbox->count;
}

UsageCopy *
usage_outbox_copies(void)
{
	return outbox->copies;
}

/* Return this server's id as a sender, USAGE_SENDER_LEN bytes. */
const uint8 *
usage_outbox_sender(void)
{
	return outbox->sender;
}

/* Return the number of the batch. */
int64
usage_outbox_batch(void)
{
	return outbox->batch;
}

/* Return whether the batch was sent and its outcome is unknown. */
bool
usage_outbox_is_in_doubt(void)
{
	return outbox->in_doubt;
}

/* Begin a new batch of a database.  The outbox must be empty. */
void
usage_outbox_begin(Oid database)
{
	Assert(outbox->count == 0);
	outbox->database = database;
	outbox->batch++;
	outbox->in_doubt = false;
}

/* Add a copy, of which the caller has taken the counts. */
void
usage_outbox_add(const UsageCopy *copy)
{
	Assert(outbox->count < USAGE_BATCH);
	outbox->copies[outbox->count++] = *copy;
}

void
usage_outbox_set_in_doubt(void)
{
	outbox->in_doubt = true;
}

/*
 * Remove the last copy and return it, good until the next call; NULL when the
 * outbox is empty.
 */
UsageCopy *
usage_outbox_remove_last(void)
{
	return outbox->count > 0 ? &outbox->copies[--outbox->count] : NULL;
}

/* Throw the batch away if it is of that database. */
void
usage_outbox_discard(Oid database)
{
	if (outbox->database == database)
		outbox->count = 0;
}
