/*
 * receive.c
 *		Use of keys, and units of quotas, that another server has counted and sends
 *		here.
 *
 * A sender numbers its batches, and sends a batch again until it gets an
 * answer.  usage_senders holds the last number of each sender, written in the
 * transaction that writes the batch, so a batch that arrives twice counts once.
 * Keys whose row another transaction has locked are left out, and stay with the
 * sender.  usage_senders notes the keys left out, so that the second answer is
 * the same.
 *
 * Trust: a caller of receive_usage() can make counts, units and times grow, and
 * nothing else.  A time later than this server's clock is cut to the clock.
 *
 * A sender names a batch that it knows is written again, without entries, to
 * wait in COMMIT for a synchronous standby (see send.c).
 *
 * Locking: a batch that is known takes the sender's row.  Any other takes the
 * lock of flushes, then the locks of a flush, then the sender's row.  It waits
 * for each at most 2 seconds.  Only the row is held while COMMIT waits for a
 * synchronous standby, if the sender is of 0.3.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "base/caller.h"
#include "base/grant.h"
#include "base/principal.h"
#include "compat.h"
#include "usage/shared.h"

/* A batch that is written as the tables' owner. */
typedef struct Receipt
{
	const uint8 *sender;
	int64		batch;
	UsageCopy  *copies;
	int			count;
	bool	   *flushed;		/* results, as usage_flush() has them */
	bool	   *gone;
} Receipt;

/* The arguments that are arrays, in their order. */
enum Column
{
	COLUMN_KEY_ID,
	COLUMN_ENVIRONMENT,
	COLUMN_LAST_USED_AT,
	COLUMN_ADDR,
	COLUMN_USES,
	COLUMN_DENIALS,
	COLUMN_KNOWN_USES,
	COLUMN_KNOWN_DENIALS,
	COLUMN_ENDED,				/* since 0.3 */
	COLUMN_LIMIT_ID,
	COLUMNS
};

static Datum receive_usage(FunctionCallInfo fcinfo, int columns);
static UsageCopy *parse_copies(FunctionCallInfo fcinfo, int columns, int *count);
static void parse_copy(UsageCopy *copy, Datum *values[], bool *nulls[], int i);
static void parse_quota(UsageCopy *copy, Datum *values[], bool *nulls[], int i);
pg_noreturn static void refuse_entry(int i);
static bool take_count(int64 *count, Datum *values[], bool *nulls[],
					   int column, int i);
static uint32 take_day(DateADT day);
static void receive(void *arg);
static bool recall_batch(Receipt *receipt);
static void note_batch(Receipt *receipt);
static void recall_quotas(Receipt *receipt);
static void read_recalled(Receipt *receipt);
static Datum names(const Receipt *receipt, bool left_out);

PG_FUNCTION_INFO_V1(rk_apikeys_receive_usage);
PG_FUNCTION_INFO_V1(rk_apikeys_receive_usage_0_3);

/*
 * rk_apikeys.receive_usage(sender uuid, batch bigint, key_ids text[],
 *		environments text[], last_used_at timestamptz[], addrs inet[],
 *		uses bigint[], denials bigint[], known_uses bigint[],
 *		known_denials bigint[], ended date[], limit_ids uuid[])
 *		-> setof (n, use_count, denied_count)
 *
 * Write a batch of use.  Return a row for each key that was written: its number
 * in the arrays, from 1, and the counts that key_usage has now.  The counts of a
 * key that does not exist are NULL.  A key that was left out has no row.
 * ended has the day on which the token of an ended key was last refused, or
 * NULL; an empty array is for senders before 0.3.
 *
 * If limit_ids has a limit, the entry has units of this quota: key_ids has the
 * family, or "", last_used_at the begin of the period, uses and known_uses the
 * units.  The other arrays do not matter.
 */
Datum
rk_apikeys_receive_usage_0_3(PG_FUNCTION_ARGS)
{
	return receive_usage(fcinfo, COLUMNS);
}

/* The same for SQL of 0.1 and 0.2, without ended and limit_ids. */
Datum
rk_apikeys_receive_usage(PG_FUNCTION_ARGS)
{
	return receive_usage(fcinfo, COLUMN_ENDED);
}

static Datum
receive_usage(FunctionCallInfo fcinfo, int columns)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	UsageCopy  *copies;
	bool	   *flushed;
	bool	   *gone;
	int			count = 0;

	principal_refuse();
	copies = parse_copies(fcinfo, columns, &count);
	flushed = palloc(Max(count, 1) * sizeof(bool));
	gone = palloc(Max(count, 1) * sizeof(bool));
	usage_receive(PG_GETARG_UUID_P(0)->data, PG_GETARG_INT64(1), copies, count,
				  flushed, gone);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < count; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {false, gone[i], gone[i]};

		if (!flushed[i] && !gone[i])
			continue;
		values[0] = Int32GetDatum(i + 1);
		values[1] = Int64GetDatum(copies[i].table_uses);
		values[2] = Int64GetDatum(copies[i].table_denials);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * Write a batch of copies in the caller's transaction, unless the batch was
 * written before.  Set flushed[], gone[] and the table's counts as usage_flush()
 * does.  Raise 55P03 if another flush holds the lock for too long.
 */
void
usage_receive(const uint8 *sender, int64 batch, UsageCopy *copies, int count,
			  bool *flushed, bool *gone)
{
	Receipt		receipt = {sender, batch, copies, count, flushed, gone};

	memset(flushed, 0, count * sizeof(bool));
	memset(gone, 0, count * sizeof(bool));
	caller_run_as_owner(store_table("usage_senders", false), receive, &receipt);
}

/* Return the arrays as copies.  Raise 22023 if the arrays do not fit. */
static UsageCopy *
parse_copies(FunctionCallInfo fcinfo, int columns, int *count)
{
	static const struct
	{
		Oid			type;
		int			len;
		bool		byval;
		char		align;
	}			types[COLUMNS] = {
		{TEXTOID, -1, false, TYPALIGN_INT},
		{TEXTOID, -1, false, TYPALIGN_INT},
		{TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
		{INETOID, -1, false, TYPALIGN_INT},
		{INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
		{INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
		{INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
		{INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
		{DATEOID, 4, true, TYPALIGN_INT},
		{UUIDOID, UUID_LEN, false, TYPALIGN_CHAR}
	};
	Datum	   *values[COLUMNS];
	bool	   *nulls[COLUMNS];
	UsageCopy  *copies;
	bool		has[COLUMNS] = {false};

	for (int c = 0; c < columns; c++)
	{
		ArrayType  *array = PG_GETARG_ARRAYTYPE_P(c + 2);
		int			elements;

		deconstruct_array(array, types[c].type, types[c].len, types[c].byval,
						  types[c].align, &values[c], &nulls[c], &elements);
		if (c == 0)
			*count = elements;
		has[c] = c < COLUMN_ENDED || elements > 0;
		if (!has[c])
			continue;
		if (elements != *count || elements > USAGE_BATCH || ARR_NDIM(array) > 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("arrays of a usage batch must have one length, at most %d",
							USAGE_BATCH)));
	}
	copies = palloc0(Max(*count, 1) * sizeof(UsageCopy));
	for (int i = 0; i < *count; i++)
	{
		if (has[COLUMN_LIMIT_ID] && !nulls[COLUMN_LIMIT_ID][i])
		{
			parse_quota(&copies[i], values, nulls, i);
			continue;
		}
		parse_copy(&copies[i], values, nulls, i);
		if (has[COLUMN_ENDED] && !nulls[COLUMN_ENDED][i])
			copies[i].ended_day = take_day(DatumGetDateADT(values[COLUMN_ENDED][i]));
	}
	return copies;
}

static void
parse_copy(UsageCopy *copy, Datum *values[], bool *nulls[], int i)
{
	text	   *key_id = nulls[COLUMN_KEY_ID][i] ? NULL :
		DatumGetTextPP(values[COLUMN_KEY_ID][i]);
	text	   *environment = nulls[COLUMN_ENVIRONMENT][i] ? NULL :
		DatumGetTextPP(values[COLUMN_ENVIRONMENT][i]);

	if (key_id == NULL || VARSIZE_ANY_EXHDR(key_id) != TOKEN_KEY_ID_LEN ||
		environment == NULL ||
		!token_name_ok(VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment)) ||
		!take_count(&copy->use_count, values, nulls, COLUMN_USES, i) ||
		!take_count(&copy->denied_count, values, nulls, COLUMN_DENIALS, i) ||
		!take_count(&copy->known_uses, values, nulls, COLUMN_KNOWN_USES, i) ||
		!take_count(&copy->known_denials, values, nulls, COLUMN_KNOWN_DENIALS, i))
		refuse_entry(i);
	text_to_cstring_buffer(key_id, copy->key_id, sizeof(copy->key_id));
	text_to_cstring_buffer(environment, copy->environment,
						   sizeof(copy->environment));
	if (!nulls[COLUMN_LAST_USED_AT][i])
		copy->last_used_at = Min(DatumGetTimestampTz(values[COLUMN_LAST_USED_AT][i]),
								 GetCurrentTimestamp());
	if (!nulls[COLUMN_ADDR][i])
	{
		copy->has_addr = true;
		grant_host(DatumGetInetPP(values[COLUMN_ADDR][i]), &copy->addr);
	}
}

static void
parse_quota(UsageCopy *copy, Datum *values[], bool *nulls[], int i)
{
	text	   *family = nulls[COLUMN_KEY_ID][i] ? NULL :
		DatumGetTextPP(values[COLUMN_KEY_ID][i]);

	if (family == NULL ||
		(VARSIZE_ANY_EXHDR(family) != 0 && VARSIZE_ANY_EXHDR(family) != TOKEN_KEY_ID_LEN) ||
		nulls[COLUMN_LAST_USED_AT][i] ||
		!take_count(&copy->use_count, values, nulls, COLUMN_USES, i) ||
		!take_count(&copy->known_uses, values, nulls, COLUMN_KNOWN_USES, i))
		refuse_entry(i);
	copy->is_quota = true;
	copy->since = DatumGetTimestampTz(values[COLUMN_LAST_USED_AT][i]);
	memcpy(copy->limit_id, DatumGetUUIDP(values[COLUMN_LIMIT_ID][i])->data,
		   sizeof(copy->limit_id));
	text_to_cstring_buffer(family, copy->family, sizeof(copy->family));
	/* For usage_follow_at_commit(). */
	usage_bucket_name(copy);
}

static void
refuse_entry(int i)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid entry %d in usage batch", i + 1)));
}

/* Set *count, at most USAGE_COUNT_MAX.  Return whether the value is a count. */
static bool
take_count(int64 *count, Datum *values[], bool *nulls[], int column, int i)
{
	if (nulls[column][i] || DatumGetInt64(values[column][i]) < 0)
		return false;
	*count = Min(DatumGetInt64(values[column][i]), USAGE_COUNT_MAX);
	return true;
}

/*
 * Return a day as an entry has it: 0 unless it is one of the last two days, or
 * tomorrow.  A sender may claim any day.
 */
static uint32
take_day(DateADT day)
{
	DateADT		today = (DateADT) (GetCurrentTimestamp() / USECS_PER_DAY);

	return day < today - 2 || day > today + 1 ? 0 : (uint32) day + 1;
}

/* OwnerWork */
static void
receive(void *arg)
{
	Receipt    *receipt = arg;

	/* The setting lasts as long as the borrowed rights. */
	(void) set_config_option("lock_timeout", "2s", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	if (recall_batch(receipt))
	{
		SPI_finish();
		return;
	}
	(void) usage_lock_flushes(true);
	/* An earlier copy of the batch may have held the lock. */
	if (!recall_batch(receipt))
	{
		usage_flush(receipt->copies, receipt->count, receipt->flushed,
					receipt->gone);
		note_batch(receipt);
		usage_follow_at_commit(receipt->copies, receipt->count, receipt->flushed);
	}
	SPI_finish();
}

/*
 * Return whether the batch was written before.  If so, set the results as if
 * this call had written it, and write the sender's row: COMMIT waits for a
 * synchronous standby only after a write.
 */
static bool
recall_batch(Receipt *receipt)
{
	static const char *const query =
		"SELECT b.n::int, u.use_count, u.denied_count"
		" FROM rk_apikeys.usage_senders s"
		"  CROSS JOIN unnest($3::text[]) WITH ORDINALITY AS b(key_id, n)"
		"  LEFT JOIN rk_apikeys.key_usage u ON u.key_id = b.key_id"
		" WHERE s.sender = $1 AND s.batch >= $2 AND b.key_id <> ALL (s.left_out)"
		"  AND b.key_id !~ ' '";
	static const char *const known =
		"UPDATE rk_apikeys.usage_senders SET received_at = clock_timestamp()"
		" WHERE sender = $1 AND batch >= $2";
	Oid			types[3] = {UUIDOID, INT8OID, TEXTARRAYOID};
	Datum		values[3];

	values[0] = PointerGetDatum(receipt->sender);
	values[1] = Int64GetDatum(receipt->batch);
	values[2] = names(receipt, false);
	SPI_execute_with_args(known, 2, types, values, NULL, false, 0);
	if (SPI_processed == 0)
		return false;
	SPI_execute_with_args(query, 3, types, values, NULL, false, 0);
	read_recalled(receipt);
	for (int i = 0; i < receipt->count; i++)
		if (receipt->copies[i].is_quota)
		{
			recall_quotas(receipt);
			break;
		}
	return true;
}

/* Do the same for the quotas of a batch that was written before. */
static void
recall_quotas(Receipt *receipt)
{
	static const char *const query =
		"SELECT b.n::int, u.units, 0::bigint"
		" FROM rk_apikeys.usage_senders s"
		"  CROSS JOIN unnest($3::text[], $4::uuid[], $5::text[], $6::timestamptz[])"
		"   WITH ORDINALITY AS b(name, limit_id, family, period_start, n)"
		"  LEFT JOIN rk_apikeys.limit_usage u USING (limit_id, family, period_start)"
		" WHERE s.sender = $1 AND s.batch >= $2 AND b.limit_id IS NOT NULL AND b.name <> ALL (s.left_out)";
	Oid			types[6] = {UUIDOID, INT8OID, TEXTARRAYOID, UUIDARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID};
	Datum		values[6];
	int			count = receipt->count;
	Datum	   *limits = palloc(count * sizeof(Datum));
	Datum	   *families = palloc(count * sizeof(Datum));
	Datum	   *starts = palloc(count * sizeof(Datum));
	bool	   *nulls = palloc(count * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	for (int i = 0; i < count; i++)
	{
		UsageCopy  *copy = &receipt->copies[i];

		nulls[i] = !copy->is_quota;
		limits[i] = UUIDPGetDatum((pg_uuid_t *) copy->limit_id);
		families[i] = CStringGetTextDatum(copy->family);
		starts[i] = TimestampTzGetDatum(copy->since);
	}
	values[0] = PointerGetDatum(receipt->sender);
	values[1] = Int64GetDatum(receipt->batch);
	values[2] = names(receipt, false);
	values[3] = PointerGetDatum(construct_md_array(limits, nulls, 1, dims, lower, UUIDOID,
												   UUID_LEN, false, TYPALIGN_CHAR));
	values[4] = PointerGetDatum(construct_array(families, count, TEXTOID, -1, false,
												TYPALIGN_INT));
	values[5] = PointerGetDatum(construct_array(starts, count, TIMESTAMPTZOID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	SPI_execute_with_args(query, 6, types, values, NULL, false, 0);
	read_recalled(receipt);
}

/* Set the results of a batch that was written before to rows of counts. */
static void
read_recalled(Receipt *receipt)
{
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[row];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int			i = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull)) - 1;

		receipt->copies[i].table_uses = DatumGetInt64(SPI_getbinval(tuple, desc, 2, &isnull));
		receipt->copies[i].table_denials = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
		receipt->flushed[i] = !isnull;
		receipt->gone[i] = isnull;
	}
}

/*
 * Note that the batch is written.  At the first batch of a sender, whose number
 * need not be 1, forget senders silent for 30 days.
 */
static void
note_batch(Receipt *receipt)
{
	static const char *const query =
		"INSERT INTO rk_apikeys.usage_senders AS s"
		"  (sender, batch, received_at, client_addr, application_name, left_out)"
		" VALUES ($1, $2, clock_timestamp(), inet_client_addr(), $3, $4)"
		" ON CONFLICT (sender) DO UPDATE SET batch = excluded.batch,"
		"  received_at = excluded.received_at, client_addr = excluded.client_addr,"
		"  application_name = excluded.application_name, left_out = excluded.left_out"
		" RETURNING xmax = 0";		/* whether the row is new */
	static const char *const purge =
		"DELETE FROM rk_apikeys.usage_senders"
		" WHERE received_at < clock_timestamp() - interval '30 days'";
	Oid			types[4] = {UUIDOID, INT8OID, TEXTOID, TEXTARRAYOID};
	Datum		values[4];
	bool		isnull;

	values[0] = PointerGetDatum(receipt->sender);
	values[1] = Int64GetDatum(receipt->batch);
	values[2] = CStringGetTextDatum(caller_application_name());
	values[3] = names(receipt, true);
	SPI_execute_with_args(query, 4, types, values, NULL, false, 0);
	if (SPI_processed > 0 &&
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)))
		SPI_execute(purge, false, 0);
}

/*
 * Return the batch's keys, and the names of its quotas, or only those that were
 * left out, as text[].
 */
static Datum
names(const Receipt *receipt, bool left_out)
{
	Datum	   *found = palloc(Max(receipt->count, 1) * sizeof(Datum));
	int			count = 0;

	for (int i = 0; i < receipt->count; i++)
	{
		const UsageCopy *copy = &receipt->copies[i];

		if (left_out && (receipt->flushed[i] || receipt->gone[i]))
			continue;
		if (copy->is_quota)
			found[count++] = CStringGetTextDatum(psprintf("%s %s " INT64_FORMAT,
														  DatumGetCString(DirectFunctionCall1(uuid_out,
																							  UUIDPGetDatum((const pg_uuid_t *) copy->limit_id))),
														  copy->family, copy->since));
		else
			found[count++] = CStringGetTextDatum(copy->key_id);
	}
	return PointerGetDatum(construct_array(found, count, TEXTOID, -1, false,
										   TYPALIGN_INT));
}
