/*
 * store.c
 *		The stored keys, read by index under a fresh snapshot.
 *
 * No SPI and no executor: a row is fetched through the table's own index.  The
 * snapshot is the latest, not the transaction's, so that a REPEATABLE READ
 * transaction sees a revocation too.  No privilege or policy stands between:
 * the right to verify is EXECUTE on the functions that come here.
 *
 * Whoever has read a row before may remember its place, the buffer and the line
 * pointer, and save the descent of the index.  A place proves nothing, and may
 * be old: it counts only if that buffer holds that block of that table now, and
 * a row with the key id is visible there, which then is the only one.
 *
 * A brief key goes further: it is a copy of a row that was committed, and that
 * nobody had begun to change, with the LSN of its page.  Whatever changes or
 * deletes a row writes WAL and so moves the LSN of the page before it commits:
 * as long as the page is in that buffer, with that LSN, the copy is the row.
 * This holds on a standby, and whoever commits.  What it does not hold for: a
 * table without WAL, and wal_level minimal, where a new file may get its changes
 * without; then no brief keys are made.  A file that is the table's no longer,
 * whose buffers may outlive the lock: it is forgotten with the next message.  A
 * TRUNCATE or DROP by the own transaction: one that has written anything takes
 * no brief keys.
 *
 * Locking: AccessShareLock on table and index, given back at once, so that an
 * idle transaction that has verified a key is in nobody's way.  For a brief key
 * a pin on the buffer alone.
 *
 * Memory: results live in the current context.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type_d.h"
#include "executor/tuptable.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/store.h"
#include "compat.h"

#define SCHEMA_NAME "rk_apikeys"
#define IMPORTED_INDEX "api_keys_imported_digest"

/* Of a row, what is fetched ahead: its first lines of the processor's cache. */
#define CACHE_LINE 64
#define ROW_LINES 5

/* Times that a row is looked for while others may be changing it. */
#define UNSEEN_TRIES 3

/* Columns of rk_apikeys.key_usage that are read here. */
#define USAGE_KEY_ID 1
#define USAGE_LAST_USED_AT 3
#define USAGE_USE_COUNT 5
#define USAGE_DENIED_COUNT 6

/*
 * The file of api_keys, when it was last read, and that table.  A table that gets
 * another file tells so before it gives its lock back: until then no row changes,
 * and from then on store_forget_file() is called.
 */
static RelFileLocator file;
static Oid	file_table = InvalidOid;

/* The pointers of a StoredKey, and what they point to; the metadata is last. */
static const struct
{
	int			column;
	size_t		offset;
}			pointers[] = {
	{KEY_TENANT, offsetof(StoredKey, tenant)},
	{KEY_NAME, offsetof(StoredKey, name)},
	{KEY_ENVIRONMENT, offsetof(StoredKey, environment)},
	{KEY_SCOPES, offsetof(StoredKey, scopes)},
	{KEY_ALLOWED_CIDRS, offsetof(StoredKey, allowed_cidrs)},
	{KEY_METADATA, offsetof(StoredKey, metadata)}
};

#define POINTERS ((int) lengthof(pointers))

/* What is looked for, in which table. */
typedef struct Search
{
	Oid			table;
	const char *index;			/* NULL: the primary key */
	Datum		value;			/* of the first column of the index */
	RegProcedure equal;			/* InvalidOid: any row will do */
	StoredPlace place;			/* where the row may be, then where it was */
	RelFileLocator file;		/* result: of the table */
} Search;

/* What is done with a row that was found; runs while it is pinned. */
typedef void (*RowReader) (HeapTuple row, TupleDesc desc, void *arg);

static bool read_row(Search *search, RowReader reader, void *arg);
static bool read_at_place(Relation rel, Snapshot snapshot, Search *search,
						  RowReader reader, void *arg);
static bool read_by_index(Relation rel, Snapshot snapshot, Search *search,
						  RowReader reader, void *arg);
static Oid	find_index(Relation rel, const char *name);
static char **pointer_of(StoredKey *key, int i);
static void parse_key(HeapTuple row, TupleDesc desc, void *arg);
static void parse_usage(HeapTuple row, TupleDesc desc, void *arg);
static void parse_nothing(HeapTuple row, TupleDesc desc, void *arg);

/*
 * The OID of one of the extension's tables.  Nobody but the extension's owner
 * can put a table into its schema, so the name is enough.  Raises 42P01, or
 * returns InvalidOid, if it is gone.
 */
Oid
store_table(const char *name, bool missing_ok)
{
	Oid			schema = get_namespace_oid(SCHEMA_NAME, true);
	Oid			table = InvalidOid;

	if (OidIsValid(schema))
		table = get_relname_relid(name, schema);
	if (!OidIsValid(table) && !missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s.%s does not exist", SCHEMA_NAME, name),
				 errhint("Create the extension rk_apikeys in this database.")));
	return table;
}

/*
 * The key with that id (TOKEN_KEY_ID_LEN bytes, not terminated), or NULL if
 * there is none.  The table is api_keys, whose OID the caller keeps for as long
 * as no message says that it may be another; none is there if it is gone.  The
 * row is looked for at that place first.
 */
StoredKey *
store_find(Oid table, const char *key_id, const StoredPlace *place)
{
	StoredKey  *key = NULL;
	text	   *id = cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);
	Search		search = {
		.table = table, .value = PointerGetDatum(id), .equal = F_TEXTEQ,
		.place = *place
	};

	if (read_row(&search, parse_key, &key))
	{
		key->place = search.place;
		file = search.file;
		file_table = table;
	}
	pfree(id);
	return key;
}

/* A message of the table was taken: it may have another file now. */
void
store_forget_file(void)
{
	file_table = InvalidOid;
}

/*
 * Have what a row at that place takes to be read fetched into the processor's
 * cache: a while later it is read faster.
 */
void
store_prefetch(const StoredPlace *place)
{
	char	   *page;

	if (place->buffer < 1 || place->buffer > NBuffers)
		return;
	page = BufferGetBlock(place->buffer);
	__builtin_prefetch(GetBufferDescriptor(place->buffer - 1));
	__builtin_prefetch(page);
	__builtin_prefetch(page + offsetof(PageHeaderData, pd_linp) +
					   place->offset * sizeof(ItemIdData));
	for (int i = 0; i < ROW_LINES; i++)
		__builtin_prefetch(page + Min(place->start + i * CACHE_LINE, BLCKSZ - 1));
}

/*
 * Abridge a key that was just read.  Where a brief key would not do, the place
 * alone is noted.
 */
void
store_abridge(const StoredKey *key, StoredBrief *brief)
{
	brief->place = key->place;
	if (key->digest_kind != DIGEST_NATIVE ||
		key->digest_len != DIGEST_SHA256_LEN || key->revoked || !key->enabled ||
		key->allowed_cidrs != NULL || key->rate_limit > 0 ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		brief->place.lsn = InvalidXLogRecPtr;
	brief->good_until = Min(key->expires_at, key->grace_until);
	brief->pepper_id = key->pepper_id;
	memcpy(brief->digest, key->digest, DIGEST_SHA256_LEN);
}

/* Whether a brief key is what its row is now, and good. */
bool
store_brief_holds(Oid table, const StoredBrief *brief)
{
	const StoredPlace *place = &brief->place;
	bool		same;

	if (XLogRecPtrIsInvalid(place->lsn) || !OidIsValid(table) || file_table != table ||
		place->buffer < 1 || place->buffer > NBuffers ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		!ReadRecentBuffer(file, MAIN_FORKNUM, place->block, place->buffer))
		return false;
	same = BufferGetLSNAtomic(place->buffer) == place->lsn;
	ReleaseBuffer(place->buffer);
	return same && GetCurrentTimestamp() < brief->good_until;
}

/* Make a key of a brief one. */
void
store_expand(const StoredBrief *brief, const char *key_id, StoredKey *key)
{
	memset(key, 0, sizeof(*key));
	memcpy(key->key_id, key_id, TOKEN_KEY_ID_LEN);
	key->digest_kind = DIGEST_NATIVE;
	key->digest_len = DIGEST_SHA256_LEN;
	memcpy(key->digest, brief->digest, DIGEST_SHA256_LEN);
	key->pepper_id = brief->pepper_id;
	key->enabled = true;
	key->expires_at = brief->good_until;
	key->grace_until = DT_NOEND;
	key->place.buffer = InvalidBuffer;
}

/* The imported key with that digest, or NULL if there is none. */
StoredKey *
store_find_imported(Oid table, DigestKind kind, const uint8 *digest, int len)
{
	StoredKey  *key = NULL;
	bytea	   *value = palloc(VARHDRSZ + len);
	Search		search = {
		.table = table, .index = IMPORTED_INDEX,
		.value = PointerGetDatum(value), .equal = F_BYTEAEQ
	};

	SET_VARSIZE(value, VARHDRSZ + len);
	memcpy(VARDATA(value), digest, len);
	read_row(&search, parse_key, &key);
	pfree(value);
	return key != NULL && key->digest_kind == kind ? key : NULL;
}

/* Whether there is any imported key. */
bool
store_has_imported(Oid table)
{
	Search		search = {.table = table, .index = IMPORTED_INDEX};

	return read_row(&search, parse_nothing, NULL);
}

/* Whether the key has a row in key_usage, and what it says. */
bool
store_find_usage(const char *key_id, StoredUsage *usage)
{
	text	   *id = cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);
	Search		search = {
		.table = store_table("key_usage", true),
		.value = PointerGetDatum(id), .equal = F_TEXTEQ
	};
	bool		found = read_row(&search, parse_usage, usage);

	pfree(id);
	return found;
}

/*
 * Find a row and hand it to the reader.  Returns whether there is one; false
 * too if the extension is gone.
 */
static bool
read_row(Search *search, RowReader reader, void *arg)
{
	Relation	rel;
	Snapshot	snapshot;
	bool		found = false;

	if (!OidIsValid(search->table) ||
		(rel = try_table_open(search->table, AccessShareLock)) == NULL)
		return false;
	search->file = rel->rd_locator;
	if (IsInParallelMode())
	{
		/*
		 * No snapshot can be taken here, and the one at hand may be old: each
		 * version is judged by itself.  One that commits meanwhile may have been
		 * passed when it was not there yet, and the one before it after it was.
		 */
		for (int tries = 0; tries < UNSEEN_TRIES && !found; tries++)
			found = read_by_index(rel, SnapshotSelf, search, reader, arg);
	}
	else
	{
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		found = read_at_place(rel, snapshot, search, reader, arg) ||
			read_by_index(rel, snapshot, search, reader, arg);
		UnregisterSnapshot(snapshot);
	}
	table_close(rel, AccessShareLock);
	return found;
}

/* The same, of a row of api_keys, if it is where it is said to be. */
static bool
read_at_place(Relation rel, Snapshot snapshot, Search *search,
			  RowReader reader, void *arg)
{
	StoredPlace *place = &search->place;
	Buffer		buffer = place->buffer;
	ItemPointerData tid;
	HeapTupleData row;
	bool		found;

	place->lsn = InvalidXLogRecPtr;
	if (buffer < 1 || buffer > NBuffers ||
		rel->rd_rel->relam != HEAP_TABLE_AM_OID ||
		!ReadRecentBuffer(rel->rd_locator, MAIN_FORKNUM, place->block, buffer))
		return false;
	ItemPointerSet(&tid, place->block, place->offset);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	found = heap_hot_search_buffer(&tid, rel, buffer, snapshot, &row, NULL,
								   true);
	/* Settled: visible, and nobody has begun to change it. */
	if (found && XLogIsNeeded() && RelationNeedsWAL(rel) &&
		((row.t_data->t_infomask & HEAP_XMAX_INVALID) != 0 ||
		 HEAP_XMAX_IS_LOCKED_ONLY(row.t_data->t_infomask)))
		place->lsn = BufferGetLSNAtomic(buffer);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	if (found)
	{
		bool		isnull;
		Datum		value = heap_getattr(&row, KEY_KEY_ID,
										 RelationGetDescr(rel), &isnull);

		found = !isnull &&
			DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
												 value, search->value));
	}
	if (found)
	{
		place->start = (char *) row.t_data - (char *) BufferGetBlock(buffer);
		reader(&row, RelationGetDescr(rel), arg);
	}
	ReleaseBuffer(buffer);
	return found;
}

/* The same, of a row of any table; notes its place. */
static bool
read_by_index(Relation rel, Snapshot snapshot, Search *search,
			  RowReader reader, void *arg)
{
	Relation	index = index_open(find_index(rel, search->index),
								   AccessShareLock);
	int			nkeys = search->equal == InvalidOid ? 0 : 1;
	IndexScanDesc scan = index_beginscan(rel, index, snapshot, nkeys, 0);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData scankey;
	ItemPointer tid;
	bool		found = false;

	if (nkeys > 0)
		ScanKeyInit(&scankey, 1, BTEqualStrategyNumber, search->equal,
					search->value);
	index_rescan(scan, &scankey, nkeys, NULL, 0);
	while (!found && (tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		/* index_fetch_heap moves it on to the version that is visible. */
		ItemPointerData root = *tid;

		if (index_fetch_heap(scan, slot))
		{
			bool		copied;
			HeapTuple	row = ExecFetchSlotHeapTuple(slot, false, &copied);

			search->place.lsn = InvalidXLogRecPtr;
			search->place.start = 0;
			search->place.block = ItemPointerGetBlockNumber(&root);
			search->place.offset = ItemPointerGetOffsetNumber(&root);
			search->place.buffer = TTS_IS_BUFFERTUPLE(slot) ?
				((BufferHeapTupleTableSlot *) slot)->buffer : InvalidBuffer;
			reader(row, RelationGetDescr(rel), arg);
			if (copied)
				heap_freetuple(row);
			found = true;
		}
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, AccessShareLock);
	return found;
}

/*
 * The index of that name (NULL: of the primary key).  Looked up each time,
 * under the table's lock: REINDEX CONCURRENTLY changes it.
 */
static Oid
find_index(Relation rel, const char *name)
{
	Oid			index;

	if (name == NULL)
	{
		if (!rel->rd_indexvalid)
			list_free(RelationGetIndexList(rel));
		index = rel->rd_pkindex;
	}
	else
		index = get_relname_relid(name, RelationGetNamespace(rel));
	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has lost the index that verify reads by",
						RelationGetRelationName(rel)),
				 errhint("Recreate the index that the extension made.")));
	return index;
}

/* A timestamp column, with NULL as the end of time. */
static TimestampTz
timestamp_or_end(Datum value, bool isnull)
{
	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

static DigestKind
parse_kind(text *kind)
{
	const char *s = VARDATA_ANY(kind);
	size_t		len = VARSIZE_ANY_EXHDR(kind);

	if (len == strlen("sha256") && memcmp(s, "sha256", len) == 0)
		return DIGEST_KIND_SHA256;
	if (len == strlen("sha512") && memcmp(s, "sha512", len) == 0)
		return DIGEST_KIND_SHA512;
	return DIGEST_NATIVE;
}

/* RowReader: parse a row of api_keys into a new StoredKey. */
static void
parse_key(HeapTuple row, TupleDesc desc, void *arg)
{
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
	Datum	   *wide_values = values;
	bool	   *wide_nulls = nulls;
	struct varlena *parts[POINTERS];
	Size		size = MAXALIGN(sizeof(StoredKey));
	StoredKey  *key;
	struct varlena *digest;
	char	   *at;

#define VALUE(column) (wide_values[(column) - 1])
#define ISNULL(column) (wide_nulls[(column) - 1])

	if (desc->natts < KEY_COLUMNS)
		elog(ERROR, "table api_keys has %d columns, expected at least %d",
			 desc->natts, KEY_COLUMNS);
	if (desc->natts > KEY_COLUMNS)
	{
		/* Columns that somebody, or a later version, has added. */
		wide_values = palloc(desc->natts * sizeof(Datum));
		wide_nulls = palloc(desc->natts * sizeof(bool));
	}
	heap_deform_tuple(row, desc, wide_values, wide_nulls);

	for (int i = 0; i < POINTERS; i++)
	{
		/* Not packed: an array or a jsonb is read in place. */
		parts[i] = ISNULL(pointers[i].column) ? NULL :
			PG_DETOAST_DATUM(VALUE(pointers[i].column));
		if (parts[i] != NULL)
			size += MAXALIGN(VARSIZE(parts[i]));
	}
	key = palloc0(size);
	key->size = size;
	key->metadata_size = MAXALIGN(VARSIZE(parts[POINTERS - 1]));
	at = (char *) key + MAXALIGN(sizeof(StoredKey));
	for (int i = 0; i < POINTERS; i++)
	{
		if (parts[i] == NULL)
			continue;
		*pointer_of(key, i) = at;
		memcpy(at, parts[i], VARSIZE(parts[i]));
		at += MAXALIGN(VARSIZE(parts[i]));
	}

	text_to_cstring_buffer(DatumGetTextPP(VALUE(KEY_KEY_ID)), key->key_id,
						   sizeof(key->key_id));
	key->digest_kind = parse_kind(DatumGetTextPP(VALUE(KEY_DIGEST_KIND)));
	digest = PG_DETOAST_DATUM_PACKED(VALUE(KEY_DIGEST));
	key->digest_len = Min(VARSIZE_ANY_EXHDR(digest), DIGEST_SHA512_LEN);
	memcpy(key->digest, VARDATA_ANY(digest), key->digest_len);
	key->pepper_id = ISNULL(KEY_PEPPER_ID) ? 0 :
		DatumGetInt16(VALUE(KEY_PEPPER_ID));
	key->xmin = HeapTupleHeaderGetXmin(row->t_data);
	key->revoked = !ISNULL(KEY_REVOKED_AT);
	key->enabled = DatumGetBool(VALUE(KEY_ENABLED));
	key->expires_at = timestamp_or_end(VALUE(KEY_EXPIRES_AT),
									   ISNULL(KEY_EXPIRES_AT));
	key->grace_until = timestamp_or_end(VALUE(KEY_GRACE_UNTIL),
										ISNULL(KEY_GRACE_UNTIL));
	if (!ISNULL(KEY_RATE_LIMIT) && !ISNULL(KEY_RATE_WINDOW))
	{
		key->rate_limit = DatumGetInt32(VALUE(KEY_RATE_LIMIT));
		key->rate_window = *DatumGetIntervalP(VALUE(KEY_RATE_WINDOW));
	}

#undef VALUE
#undef ISNULL

	*(StoredKey **) arg = key;
}

/* A copy of a key in that context, in one piece as all of them are. */
StoredKey *
store_copy(const StoredKey *key, MemoryContext context)
{
	StoredKey  *copy = MemoryContextAlloc(context, key->size);

	memcpy(copy, key, key->size);
	for (int i = 0; i < POINTERS; i++)
	{
		char	  **pointer = pointer_of(copy, i);

		if (*pointer != NULL)
			*pointer = (char *) copy + (*pointer - (const char *) key);
	}
	return copy;
}

/* One of the pointers of a key that point to what follows it. */
static char **
pointer_of(StoredKey *key, int i)
{
	return (char **) ((char *) key + pointers[i].offset);
}

/* RowReader: parse a row of key_usage. */
static void
parse_usage(HeapTuple row, TupleDesc desc, void *arg)
{
	StoredUsage *usage = arg;
	bool		isnull;
	Datum		value;

	value = heap_getattr(row, USAGE_LAST_USED_AT, desc, &isnull);
	usage->last_used_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	value = heap_getattr(row, USAGE_USE_COUNT, desc, &isnull);
	usage->use_count = isnull ? 0 : DatumGetInt64(value);
	value = heap_getattr(row, USAGE_DENIED_COUNT, desc, &isnull);
	usage->denied_count = isnull ? 0 : DatumGetInt64(value);
}

/* RowReader: that there is a row is all that was asked. */
static void
parse_nothing(HeapTuple row, TupleDesc desc, void *arg)
{
}
