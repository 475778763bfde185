/*
 * store.h
 *		The stored keys, read by index under a fresh snapshot.
 */
#ifndef STORE_H
#define STORE_H

#include "access/skey.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "storage/block.h"
#include "storage/buf.h"
#include "storage/off.h"
#include "token/digest.h"
#include "token/token.h"
#include "utils/array.h"
#include "utils/relcache.h"

/*
 * Columns of rk_apikeys.api_keys, in the order of its CREATE TABLE.  Those up to
 * KEY_FIRST_COLUMNS have these numbers in every table.  A later column has the
 * number that store_column() returns.
 */
enum KeyColumn
{
	KEY_KEY_ID = 1,
	KEY_TENANT,
	KEY_NAME,
	KEY_DESCRIPTION,
	KEY_PREFIX,
	KEY_ENVIRONMENT,
	KEY_SCOPES,
	KEY_ALLOWED_CIDRS,
	KEY_RATE_LIMIT,
	KEY_RATE_WINDOW,
	KEY_METADATA,
	KEY_ENABLED,
	KEY_EXPIRES_AT,
	KEY_REPLACES,
	KEY_GRACE_UNTIL,
	KEY_REVOKED_AT,
	KEY_REVOKED_REASON,
	KEY_CREATED_AT,
	KEY_CREATED_BY,
	KEY_UPDATED_AT,
	KEY_UPDATED_BY,
	KEY_HINT,
	KEY_DIGEST,
	KEY_DIGEST_KIND,
	KEY_PEPPER_ID,
	KEY_PARENT,
	KEY_START,
	KEY_FAMILY,
	KEY_OWNER,
	KEY_CREATED_BY_USER,
	KEY_UPDATED_BY_USER,
	KEY_LIMITS_RESET_AT,
	KEY_FIRST_COLUMNS = KEY_PEPPER_ID,
	KEY_COLUMNS = KEY_LIMITS_RESET_AT
};

typedef enum DigestKind
{
	DIGEST_NATIVE,
	DIGEST_KIND_SHA256,
	DIGEST_KIND_SHA512
} DigestKind;

/* Where a row of api_keys was read: the root of its HOT chain. */
typedef struct StoredPlace
{
	BlockNumber block;
	OffsetNumber offset;
	uint16		start;			/* of the version in the page; to prefetch */
	Buffer		buffer;			/* InvalidBuffer: not known */
	XLogRecPtr	lsn;			/* of the page, if no transaction was changing
								 * the row; else 0 */
} StoredPlace;

/* The limits that may bind a key; key/limit.c's. */
typedef struct KeyLimits KeyLimits;

/* One row of api_keys, parsed: the part that a verify needs. */
typedef struct StoredKey
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];
	DigestKind	digest_kind;
	int			digest_len;
	uint8		digest[DIGEST_SHA512_LEN];
	int			pepper_id;		/* of the digest's pepper; 0: none */
	bool		revoked;
	bool		enabled;
	TransactionId xmin;			/* who wrote the row */
	StoredPlace place;			/* of the row; not known of a copy */
	TimestampTz expires_at;		/* DT_NOEND: never */
	TimestampTz grace_until;	/* DT_NOEND: not rotated */
	TimestampTz limits_reset_at;	/* DT_NOBEGIN: never */
	int32		rate_limit;		/* 0: none */
	Interval	rate_window;
	char		family[TOKEN_KEY_ID_LEN + 1];
	text	   *tenant;
	text	   *owner;			/* NULL: the tenant's */
	text	   *name;
	text	   *environment;
	ArrayType  *scopes;
	ArrayType  *allowed_cidrs;	/* NULL: any address */
	struct varlena *metadata;	/* jsonb */
	KeyLimits  *limits;			/* in the key's memory context; NULL: not read yet */
	/* the data of the pointers follows, the metadata last */
	Size		size;			/* bytes of all this */
	Size		metadata_size;	/* bytes of them that the metadata takes */
} StoredKey;

/* One row of key_usage. */
typedef struct StoredUsage
{
	TimestampTz last_used_at;	/* DT_NOBEGIN: never */
	int64		use_count;
	int64		denied_count;
} StoredUsage;

extern int	store_column(TupleDesc desc, int column, const char *name);
extern Oid	store_table(const char *name, bool missing_ok);
extern bool store_has_text(const char *table, const char *column);
extern bool store_same_text(text *a, text *b);
extern bool store_changes_are_told(Oid table);
extern void store_forget_file(void);
extern void store_prefetch(const StoredPlace *place);
extern StoredKey *store_find(Oid table, const char *key_id,
							 const StoredPlace *place);
extern StoredKey *store_find_unchanged(Oid table, const char *key_id,
									   const StoredPlace *place);
extern bool store_family_lives(Oid table, const char *family);
extern StoredKey *store_find_imported(Oid table, DigestKind kind,
									  const uint8 *digest, int len);
extern bool store_has_imported(Oid table);
extern bool store_has_limits(Oid table);
extern bool store_has_row(Relation rel, Oid index, ScanKey key);
extern StoredKey *store_copy(const StoredKey *key, MemoryContext context);
extern bool store_find_usage(const char *key_id, StoredUsage *usage);

#endif
