/*
 * store.c
 *		The stored keys, read by index under a fresh snapshot.
 *
 * No SPI and no executor: a row is fetched through the table's own index.  The
 * snapshot is the latest, not the transaction's, so that a REPEATABLE READ
 * transaction sees a revocation too.  No privilege or policy stands between:
 * the right to verify is EXECUTE on the functions that come here.
 *
 * Locking: AccessShareLock on table and index, given back at once, so that an
 * idle transaction that has verified a key is in nobody's way.
 *
 * Memory: results live in the current context.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type_d.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "store.h"

#define SCHEMA_NAME "rk_apikeys"
#define IMPORTED_INDEX "api_keys_imported_digest"

/* Columns of rk_apikeys.key_usage that are read here. */
#define USAGE_KEY_ID 1
#define USAGE_LAST_USED_AT 3
#define USAGE_USE_COUNT 5
#define USAGE_DENIED_COUNT 6

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

/* What is done with a row that was found; runs while it is pinned. */
typedef void (*RowReader) (HeapTuple row, TupleDesc desc, void *arg);

static bool read_row(Oid table, const char *index, AttrNumber column,
					 Datum value, RegProcedure equal, RowReader reader,
					 void *arg);
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
 * as no message says that it may be another; none is there if it is gone.
 */
StoredKey *
store_find(Oid table, const char *key_id)
{
	StoredKey  *key = NULL;
	text	   *id = cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);

	read_row(table, NULL, KEY_KEY_ID, PointerGetDatum(id), F_TEXTEQ,
			 parse_key, &key);
	pfree(id);
	return key;
}

/* The imported key with that digest, or NULL if there is none. */
StoredKey *
store_find_imported(Oid table, DigestKind kind, const uint8 *digest, int len)
{
	StoredKey  *key = NULL;
	bytea	   *value = palloc(VARHDRSZ + len);

	SET_VARSIZE(value, VARHDRSZ + len);
	memcpy(VARDATA(value), digest, len);
	read_row(table, IMPORTED_INDEX, KEY_DIGEST, PointerGetDatum(value),
			 F_BYTEAEQ, parse_key, &key);
	pfree(value);
	return key != NULL && key->digest_kind == kind ? key : NULL;
}

/* Whether there is any imported key. */
bool
store_has_imported(Oid table)
{
	return read_row(table, IMPORTED_INDEX, 0, (Datum) 0, InvalidOid,
					parse_nothing, NULL);
}

/* Whether the key has a row in key_usage, and what it says. */
bool
store_find_usage(const char *key_id, StoredUsage *usage)
{
	text	   *id = cstring_to_text_with_len(key_id, TOKEN_KEY_ID_LEN);
	bool		found;

	found = read_row(store_table("key_usage", true), NULL, USAGE_KEY_ID,
					 PointerGetDatum(id), F_TEXTEQ, parse_usage, usage);
	pfree(id);
	return found;
}

/*
 * Find the row whose column equals the value (any row, for column 0), by the
 * index of that name or by the primary key if none is named, and hand it to
 * the reader.  Returns whether there is one; false too if the extension is
 * gone.
 */
static bool
read_row(Oid table, const char *index, AttrNumber column, Datum value,
		 RegProcedure equal, RowReader reader, void *arg)
{
	Relation	rel;
	Oid			index_oid;
	Snapshot	snapshot;
	SysScanDesc scan;
	ScanKeyData scankey;
	HeapTuple	row;

	if (!OidIsValid(table) ||
		(rel = try_table_open(table, AccessShareLock)) == NULL)
		return false;

	/* Looked up each time, under the lock: REINDEX CONCURRENTLY changes it. */
	if (index == NULL)
	{
		if (!rel->rd_indexvalid)
			list_free(RelationGetIndexList(rel));
		index_oid = rel->rd_pkindex;
	}
	else
		index_oid = get_relname_relid(index, RelationGetNamespace(rel));
	if (!OidIsValid(index_oid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has lost the index that verify reads by",
						RelationGetRelationName(rel)),
				 errhint("Recreate the index that the extension made.")));

	if (column != 0)
		ScanKeyInit(&scankey, column, BTEqualStrategyNumber, equal, value);
	/* In parallel mode no snapshot can be taken. */
	snapshot = RegisterSnapshot(IsInParallelMode() ? GetActiveSnapshot() :
								GetLatestSnapshot());
	scan = systable_beginscan(rel, index_oid, true, snapshot,
							  column != 0 ? 1 : 0, &scankey);
	row = systable_getnext(scan);
	if (HeapTupleIsValid(row))
		reader(row, RelationGetDescr(rel), arg);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(row);
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
