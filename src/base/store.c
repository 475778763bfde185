/*
 * store.c
 *		The stored keys, read by index under a fresh snapshot.
 *
 * A read uses no SPI and no executor: it fetches a row through the table's own
 * index.  The snapshot is the latest, not the transaction's, so a REPEATABLE
 * READ transaction sees a revocation too.  No privilege or policy applies: the
 * right to verify is EXECUTE on the functions that call these.
 *
 * Place: a caller that has read a row before may remember its place, that is
 * its buffer, block and line pointer.  A read at the place saves the descent of
 * the index.  A place may be out of date.  It counts only if that buffer holds
 * that block of the table now, and a row with the key id is visible there.  Then
 * it is the only such row.
 *
 * Unchanged page: the place of a committed row that no transaction had begun to
 * change has the LSN of its page.  A change or deletion of a row writes WAL, and
 * so moves the LSN of the page, before it commits.  So the row stands, visible, as
 * long as that buffer holds that page with that LSN, and it is read without a
 * snapshot or a lock of the table.  This is also true on a standby, and for whatever writes to
 * the table.  It is not true, and such a place has no LSN or is not believed,
 * - for a table without WAL;
 * - with wal_level minimal, where a new file may be changed without WAL;
 * - for a file that is no longer the table's, because its buffers may outlive
 *   the lock: the file is forgotten with the next message of the table;
 * - in a transaction that has written something, because it may have truncated
 *   or dropped the table itself.
 *
 * Buffers: a pin by ReadRecentBuffer() does not raise the buffer's usage count,
 * so the busiest pages of the server would be the first to be evicted.  So a
 * session's first pin of a place, and then about one in PLAIN_PIN_EVERY, at
 * random, is a plain ReadBuffer().
 *
 * Locking: AccessShareLock on table and index, released at once, so an idle
 * transaction that has verified a key blocks nobody.  A row in an unchanged page
 * takes only a pin, and for a moment the lock, of one buffer.
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
#include "commands/trigger.h"
#include "common/pg_prng.h"
#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/store.h"
#include "compat.h"

#define SCHEMA_NAME "rk_apikeys"
#define IMPORTED_INDEX "api_keys_imported_digest"
#define FAMILY_INDEX "api_keys_family"

/* Every how many pins of a place, on average, one is a plain ReadBuffer(). */
#define PLAIN_PIN_EVERY 64

/* The part of a row that is fetched ahead: its first lines of the cache. */
#define CACHE_LINE 64
#define ROW_LINES 5

/* Tries to find a row while others may be changing it. */
#define UNSEEN_TRIES 3

/* Columns of rk_apikeys.key_usage that are read here. */
#define USAGE_KEY_ID 1
#define USAGE_LAST_USED_AT 3
#define USAGE_USE_COUNT 5
#define USAGE_DENIED_COUNT 6

/*
 * The file of api_keys when it was last read, the table's OID, and a copy of its
 * columns.  When a table gets another file or column, PostgreSQL sends a message
 * before it releases the lock.  Until then no row changes, and after it
 * store_forget_file() is called.
 */
static RelFileLocator file;
static Oid	file_table = InvalidOid;
static TupleDesc file_desc = NULL;

/* Pins of places until a plain one is due; in a new session it is the first. */
static uint32 pins_left = 0;

/* The columns that a StoredKey's pointers point to; the metadata is last. */
static const struct
{
	int			column;
	size_t		offset;
}			pointers[] = {
	{KEY_TENANT, offsetof(StoredKey, tenant)},
	{KEY_OWNER, offsetof(StoredKey, owner)},
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
	bool		all;			/* hand every row to the reader, not the first */
	StoredPlace place;			/* where the row may be, then where it was */
	bool		note_file;		/* of the table */
} Search;

/* What is done with a row that was found; runs while it is pinned. */
typedef void (*RowReader) (HeapTuple row, TupleDesc desc, void *arg);

static bool always_fires(Oid table, const char *name);
static void note_file(Relation rel);
static bool read_row(Search *search, RowReader reader, void *arg);
static Buffer pin_place(Relation rel, const StoredPlace *place);
static bool read_at_place(Relation rel, Snapshot snapshot, Search *search,
						  RowReader reader, void *arg);
static bool read_by_index(Relation rel, Snapshot snapshot, Search *search,
						  RowReader reader, void *arg);
static Oid	find_index(Relation rel, const char *name);
static char **pointer_of(StoredKey *key, int i);
static Size unpacked_size(struct varlena *value);
static void parse_key(HeapTuple row, TupleDesc desc, void *arg);
static void parse_usage(HeapTuple row, TupleDesc desc, void *arg);
static void parse_life(HeapTuple row, TupleDesc desc, void *arg);
static void parse_nothing(HeapTuple row, TupleDesc desc, void *arg);

/*
 * Return the OID of one of the extension's tables.  Only the extension's owner
 * can put a table into its schema, so the name is enough.  If the table is
 * missing, raise 42P01, or, with missing_ok, return InvalidOid.
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
 * Return whether one of our tables has that column of a later release.  A column
 * of another type was added by a DBA.
 */
bool
store_has_text(const char *table, const char *column)
{
	Oid			oid = store_table(table, false);
	AttrNumber	number = get_attnum(oid, column);

	return number != InvalidAttrNumber && get_atttype(oid, number) == TEXTOID;
}

/* Return whether two texts (not toasted) have the same bytes. */
bool
store_same_text(text *a, text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * Return the number that a column of api_keys has in a table of that shape.  A
 * table of an earlier release may lack a later column: then return 0.  A DBA may
 * have added columns before the release that brought the later column, even of
 * its name.  A column of another type is not ours.
 */
int
store_column(TupleDesc desc, int column, const char *name)
{
	int			number = column;
	Oid			type = column == KEY_LIMITS_RESET_AT ? TIMESTAMPTZOID : TEXTOID;

	if (column <= KEY_FIRST_COLUMNS)
		return column;
	/* The number of a fresh table first, then all behind the first columns. */
	for (int tries = KEY_FIRST_COLUMNS; tries <= desc->natts; tries++)
	{
		if (number <= desc->natts)
		{
			Form_pg_attribute att = TupleDescAttr(desc, number - 1);

			if (!att->attisdropped && att->atttypid == type &&
				strcmp(NameStr(att->attname), name) == 0)
				return number;
		}
		number = tries + 1;
	}
	return 0;
}

/*
 * Return the key with that id (TOKEN_KEY_ID_LEN bytes, not terminated), or NULL.
 * The table is api_keys.  The caller keeps its OID until a message says that the
 * OID may have changed; InvalidOid has no keys.  The row is looked for at that
 * place first.
 */
StoredKey *
store_find(Oid table, const char *key_id, const StoredPlace *place)
{
	StoredKey  *key = NULL;
	text	   *id = cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);
	Search		search = {
		.table = table, .value = PointerGetDatum(id), .equal = F_TEXTEQ,
		.place = *place, .note_file = true
	};

	if (read_row(&search, parse_key, &key))
		key->place = search.place;
	pfree(id);
	return key;
}

/*
 * Return whether each change of api_keys and of limits sends a message, whoever
 * makes it: the triggers that send it exist and are ENABLE ALWAYS.
 */
bool
store_changes_are_told(Oid table)
{
	Oid			limits = store_table("limits", true);

	/* SQL of an earlier release has no limits. */
	return OidIsValid(table) && always_fires(table, "api_keys_settle") &&
		always_fires(table, "api_keys_settle_imported") &&
		(!OidIsValid(limits) ||
		 (always_fires(limits, "limits_settle") &&
		  always_fires(limits, "limits_settle_truncate")));
}

/* Return whether a table has a trigger of that name that is ENABLE ALWAYS. */
static bool
always_fires(Oid table, const char *name)
{
	Relation	rel = try_table_open(table, AccessShareLock);
	bool		fires = false;

	if (rel == NULL)
		return false;
	for (int i = 0; rel->trigdesc != NULL && i < rel->trigdesc->numtriggers; i++)
		if (strcmp(rel->trigdesc->triggers[i].tgname, name) == 0)
			fires = rel->trigdesc->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS;
	table_close(rel, AccessShareLock);
	return fires;
}

/* Note the file and the columns of api_keys. */
static void
note_file(Relation rel)
{
	if (file_desc == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

		file_desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
		MemoryContextSwitchTo(caller);
	}
	file = rel->rd_locator;
	file_table = RelationGetRelid(rel);
}

/* Forget the table's file: after a message the table may have another. */
void
store_forget_file(void)
{
	file_table = InvalidOid;
	if (file_desc != NULL)
		FreeTupleDesc(file_desc);
	file_desc = NULL;
}

/*
 * Have the processor fetch the lines of the page that a read at that place will
 * touch, while the caller does other work.
 */
void
store_prefetch(const StoredPlace *place)
{
	char	   *page;

	if (place->buffer < 1 || place->buffer > NBuffers)
		return;
	page = BufferGetBlock(place->buffer);
	__builtin_prefetch(page);
	__builtin_prefetch(page + offsetof(PageHeaderData, pd_linp) +
					   place->offset * sizeof(ItemIdData));
	for (int i = 0; i < ROW_LINES; i++)
		__builtin_prefetch(page + Min(place->start + i * CACHE_LINE, BLCKSZ - 1));
}

/*
 * Return the key at a place, if its page is as it was when the place was noted;
 * NULL also when a plain pin of the place is due.
 *
 * Who moves rows within a page looks for other pins once, under an exclusive lock
 * of the page, and writes the LSN before releasing the lock.  So the LSN is read
 * under a lock, behind the pin.  From then on the row's data do not move until the
 * pin is released.
 */
StoredKey *
store_find_unchanged(Oid table, const char *key_id, const StoredPlace *place)
{
	StoredKey  *key = NULL;
	bool		unchanged;

	if (XLogRecPtrIsInvalid(place->lsn) || !OidIsValid(table) || file_table != table ||
		place->buffer < 1 || place->buffer > NBuffers ||
		(pins_left == 0 && !IsInParallelMode()) ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()) ||
		!ReadRecentBuffer(file, MAIN_FORKNUM, place->block, place->buffer))
		return NULL;
	if (pins_left > 0)
		pins_left--;
	LockBuffer(place->buffer, BUFFER_LOCK_SHARE);
	unchanged = BufferGetLSNAtomic(place->buffer) == place->lsn;
	LockBuffer(place->buffer, BUFFER_LOCK_UNLOCK);
	if (unchanged)
	{
		HeapTupleData row = {
			.t_data = (HeapTupleHeader) ((char *) BufferGetBlock(place->buffer) + place->start)
		};

		/* Data in the TOAST table would need a snapshot. */
		if (!HeapTupleHasExternal(&row))
			parse_key(&row, file_desc, &key);
	}
	ReleaseBuffer(place->buffer);
	return key != NULL && memcmp(key->key_id, key_id, TOKEN_KEY_ID_LEN) == 0 ? key : NULL;
}

/* Return the imported key with that digest, or NULL. */
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

/*
 * Return whether a key of a family is neither revoked nor past its end.  Without
 * the index, which SQL before 0.3 lacks, every family with its first key is.
 */
bool
store_family_lives(Oid table, const char *family)
{
	bool		lives = false;
	Search		first = {
		.table = table, .value = CStringGetTextDatum(family), .equal = F_TEXTEQ
	};
	Search		others = {
		.table = table, .index = FAMILY_INDEX, .value = first.value,
		.equal = F_TEXTEQ, .all = true
	};
	bool		exists = read_row(&first, parse_life, &lives);

	if (!OidIsValid(get_relname_relid(FAMILY_INDEX, get_rel_namespace(table))))
		return exists;
	if (!lives)
		read_row(&others, parse_life, &lives);
	return lives;
}

/* Return whether any imported key exists. */
bool
store_has_imported(Oid table)
{
	Search		search = {.table = table, .index = IMPORTED_INDEX};

	return read_row(&search, parse_nothing, NULL);
}

/* Return whether there may be a limit; InvalidOid has none. */
bool
store_has_limits(Oid table)
{
	Relation	rel = OidIsValid(table) ? try_table_open(table, AccessShareLock) : NULL;
	bool		found;

	if (rel == NULL)
		return false;
	found = rel->rd_rel->relkind == RELKIND_RELATION && RelationGetNumberOfBlocks(rel) > 0;
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * Return whether a table has a row that is committed now and fits the key of the
 * first column of an index.  A DBA may have dropped the index (InvalidOid).
 */
bool
store_has_row(Relation rel, Oid index, ScanKey key)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, index, OidIsValid(index), snapshot, 1, key);
	bool		found = HeapTupleIsValid(systable_getnext(scan));

	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

/* Return whether the key has a row in key_usage, and set *usage to it. */
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
 * Find a row and hand it to the reader.  Return whether there is one; false too
 * if the extension was dropped.
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
	if (IsInParallelMode())
	{
		/*
		 * No snapshot can be taken here, and the existing one may be old, so
		 * each version is judged by itself.  A concurrent UPDATE can make the
		 * scan miss both versions: it passes the new version before the commit
		 * and reads the old version after it.
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
	if (found && search->note_file)
		note_file(rel);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * Pin the buffer of a place.  Return InvalidBuffer if the buffer does not hold
 * the place's block of the table.
 */
static Buffer
pin_place(Relation rel, const StoredPlace *place)
{
	if (place->buffer < 1 || place->buffer > NBuffers ||
		rel->rd_rel->relam != HEAP_TABLE_AM_OID ||
		!ReadRecentBuffer(rel->rd_locator, MAIN_FORKNUM, place->block, place->buffer))
		return InvalidBuffer;
	if (pins_left > 0)
	{
		pins_left--;
		return place->buffer;
	}
	pins_left = 1 + pg_prng_uint32(&pg_global_prng_state) % (2 * PLAIN_PIN_EVERY - 1);
	/* The block exists, because the lock of its table is held. */
	ReleaseBuffer(place->buffer);
	return ReadBuffer(rel, place->block);
}

/* Do the same for a row of api_keys, if the row is at its place. */
static bool
read_at_place(Relation rel, Snapshot snapshot, Search *search,
			  RowReader reader, void *arg)
{
	StoredPlace *place = &search->place;
	Buffer		buffer = pin_place(rel, place);
	ItemPointerData tid;
	HeapTupleData row;
	bool		found;

	place->lsn = InvalidXLogRecPtr;
	if (!BufferIsValid(buffer))
		return false;
	place->buffer = buffer;
	ItemPointerSet(&tid, place->block, place->offset);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	found = heap_hot_search_buffer(&tid, rel, buffer, snapshot, &row, NULL,
								   true);
	/* The row is visible to all, and no transaction has begun to change it. */
	if (found && XLogIsNeeded() && RelationNeedsWAL(rel) &&
		!TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
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

/* Do the same for a row of any table, and note its place. */
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
	while ((!found || search->all) && (tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		/* index_fetch_heap() changes the TID to that of the visible version. */
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
 * Return the index of that name (NULL: of the primary key).  It is looked up
 * each time, under the table's lock, because REINDEX CONCURRENTLY changes it.
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

/* Return a timestamp column, with NULL as the end of time. */
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

/* Return the bytes that a value takes in a StoredKey. */
static Size
unpacked_size(struct varlena *value)
{
	return MAXALIGN(VARHDRSZ + VARSIZE_ANY_EXHDR(value));
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
	int			family;
	int			reset;
	char	   *at;

#define VALUE(column) (wide_values[(column) - 1])
#define ISNULL(column) (wide_nulls[(column) - 1])

	if (desc->natts < KEY_FIRST_COLUMNS)
		elog(ERROR, "table api_keys has %d columns, expected at least %d",
			 desc->natts, KEY_FIRST_COLUMNS);
	if (desc->natts > KEY_COLUMNS)
	{
		/* Columns added by others, or by a later version. */
		wide_values = palloc(desc->natts * sizeof(Datum));
		wide_nulls = palloc(desc->natts * sizeof(bool));
	}
	heap_deform_tuple(row, desc, wide_values, wide_nulls);

	family = store_column(desc, KEY_FAMILY, "family");
	for (int i = 0; i < POINTERS; i++)
	{
		int			number = pointers[i].column;

		if (number == KEY_OWNER)
			number = store_column(desc, KEY_OWNER, "owner");
		parts[i] = number == 0 || ISNULL(number) ? NULL :
			PG_DETOAST_DATUM_PACKED(VALUE(number));
		if (parts[i] != NULL)
			size += unpacked_size(parts[i]);
	}
	key = palloc(size);
	memset(key, 0, sizeof(StoredKey));
	key->size = size;
	key->metadata_size = unpacked_size(parts[POINTERS - 1]);
	at = (char *) key + MAXALIGN(sizeof(StoredKey));
	for (int i = 0; i < POINTERS; i++)
	{
		if (parts[i] == NULL)
			continue;
		/* Not packed: an array or a jsonb is read in place. */
		*pointer_of(key, i) = at;
		SET_VARSIZE(at, VARHDRSZ + VARSIZE_ANY_EXHDR(parts[i]));
		memcpy(VARDATA(at), VARDATA_ANY(parts[i]), VARSIZE_ANY_EXHDR(parts[i]));
		at += unpacked_size(parts[i]);
	}

	text_to_cstring_buffer(DatumGetTextPP(VALUE(KEY_KEY_ID)), key->key_id,
						   sizeof(key->key_id));
	/* A restored row of an earlier release has none. */
	text_to_cstring_buffer(DatumGetTextPP(VALUE(family == 0 || ISNULL(family) ?
												KEY_KEY_ID : family)),
						   key->family, sizeof(key->family));
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
	reset = store_column(desc, KEY_LIMITS_RESET_AT, "limits_reset_at");
	key->limits_reset_at = reset == 0 || ISNULL(reset) ? DT_NOBEGIN :
		DatumGetTimestampTz(VALUE(reset));
	if (!ISNULL(KEY_RATE_LIMIT) && !ISNULL(KEY_RATE_WINDOW))
	{
		key->rate_limit = DatumGetInt32(VALUE(KEY_RATE_LIMIT));
		key->rate_window = *DatumGetIntervalP(VALUE(KEY_RATE_WINDOW));
	}

#undef VALUE
#undef ISNULL

	*(StoredKey **) arg = key;
}

/* Return a copy of a key in that context, in one piece like every key. */
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

/* Return the i-th pointer of a key to the data behind it. */
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

/* RowReader: set *arg if the key is neither revoked nor past its end. */
static void
parse_life(HeapTuple row, TupleDesc desc, void *arg)
{
	StoredKey  *key;
	TimestampTz now = GetCurrentTimestamp();

	parse_key(row, desc, &key);
	if (!key->revoked && now < key->expires_at && now < key->grace_until)
		*(bool *) arg = true;
	pfree(key);
}

/* RowReader: only the existence of the row matters. */
static void
parse_nothing(HeapTuple row, TupleDesc desc, void *arg)
{
}
