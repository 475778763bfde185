/*
 * charge.c
 *		The charges of this transaction: units that are reserved until it ends.
 *
 * COMMIT and PREPARE TRANSACTION use the charges.  A rollback returns them:
 * of the transaction, or of a savepoint those that were made since.  A session
 * that is lost rolls back.  If a server process crashes, the server ends all
 * others and begins with empty memory, so nothing stays reserved.
 *
 * Memory: the list lives as long as the session, and is freed after a transaction
 * that made it long.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage/shared.h"

/* Charges for which the list has room at first; a longer list is freed. */
#define FEW_CHARGES 16

static BucketCharge *charges = NULL;
static int	count = 0;
static int	room = 0;

static void make_room(void);
static void end_transaction(XactEvent event, void *arg);
static void end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
							   SubTransactionId parentSubid, void *arg);

/* Return how many charges there are. */
int
usage_charges(void)
{
	return count;
}

/* Reserve a cost until the transaction ends, as usage_bucket_take() takes it. */
LimitResult
usage_charge(const UsageBucket *bucket, int64 cost, TimestampTz now,
			 UsageLevel *level)
{
	LimitResult result;

	make_room();
	charges[count].subid = GetCurrentSubTransactionId();
	result = usage_bucket_reserve(bucket, cost, now, level, &charges[count]);
	if (result == LIMIT_PASSED)
		count++;
	return result;
}

/* Use the charges from that number on. */
void
usage_charge_use(int from)
{
	while (count > from)
		usage_bucket_use(&charges[--count]);
}

/*
 * Return the charges from that number on, the first one first, because its piece
 * of a rate limit stands before the others.  The charges that stay stand before
 * all of them.
 */
void
usage_charge_return(int from)
{
	TimestampTz now = count > from ? GetCurrentTimestamp() : 0;

	for (int i = from; i < count; i++)
	{
		int64		given_back = usage_bucket_return(&charges[i], now);

		for (int before = 0; given_back > 0 && before < from; before++)
			if (charges[before].serial == charges[i].serial)
				limiter_note_behind(&charges[before].take, given_back);
	}
	count = Min(count, from);
}

static void
make_room(void)
{
	if (room == 0)
	{
		RegisterXactCallback(end_transaction, NULL);
		RegisterSubXactCallback(end_subtransaction, NULL);
		room = FEW_CHARGES;
	}
	if (charges == NULL)
	{
		charges = MemoryContextAlloc(TopMemoryContext, FEW_CHARGES * sizeof(BucketCharge));
		room = FEW_CHARGES;
	}
	if (count == room)
	{
		charges = repalloc_huge(charges, mul_size(mul_size(room, 2), sizeof(BucketCharge)));
		room *= 2;
	}
}

/* XactCallback */
static void
end_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
		usage_charge_use(0);
	else if (event == XACT_EVENT_ABORT)
		usage_charge_return(0);
	else
		return;
	if (charges != NULL && room > FEW_CHARGES)
	{
		pfree(charges);
		charges = NULL;
	}
}

/* SubXactCallback: a rollback returns what was reserved inside. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId mySubid,
				   SubTransactionId parentSubid, void *arg)
{
	int			from = count;

	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (from > 0 && charges[from - 1].subid >= mySubid)
		from--;
	usage_charge_return(from);
}
