/*
 * columns.c
 *		What each column of api_keys is.
 *
 * guard.c and audit.c share this list.  A column that is not in it was added by
 * a DBA, and counts as a setting.  A column that a later release of ours adds
 * must be put into the list, or the library does not compile.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "utils/builtins.h"

#include "compat.h"
#include "key/columns.h"

/* By KeyColumn - 1. */
static const struct
{
	const char *name;
	int			flags;
}			columns[] = {
	/* key_events has columns of its own for the key and the tenant. */
	[KEY_KEY_ID - 1] = {"key_id", COLUMN_DATED | COLUMN_FIXED | COLUMN_MADE},
	[KEY_TENANT - 1] = {"tenant", COLUMN_DATED | COLUMN_FIXED | COLUMN_COPIED},
	[KEY_NAME - 1] = {"name", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_DESCRIPTION - 1] = {"description", COLUMN_SETTING | COLUMN_COPIED},
	/* A part of the token, like its key id. */
	[KEY_PREFIX - 1] = {"prefix", COLUMN_DATED | COLUMN_FIXED | COLUMN_MADE},
	[KEY_ENVIRONMENT - 1] = {"environment", COLUMN_SETTING | COLUMN_FIXED | COLUMN_COPIED},
	[KEY_SCOPES - 1] = {"scopes", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_ALLOWED_CIDRS - 1] = {"allowed_cidrs", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_RATE_LIMIT - 1] = {"rate_limit", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_RATE_WINDOW - 1] = {"rate_window", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_METADATA - 1] = {"metadata", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_ENABLED - 1] = {"enabled", COLUMN_SETTING | COLUMN_COPIED},
	[KEY_EXPIRES_AT - 1] = {"expires_at", COLUMN_SETTING},
	[KEY_REPLACES - 1] = {"replaces", COLUMN_SETTING | COLUMN_FIXED},
	[KEY_GRACE_UNTIL - 1] = {"grace_until", COLUMN_SETTING | COLUMN_MADE},
	[KEY_REVOKED_AT - 1] = {"revoked_at", COLUMN_SETTING | COLUMN_MADE},
	[KEY_REVOKED_REASON - 1] = {"revoked_reason", COLUMN_SETTING | COLUMN_MADE},
	/* The trigger keeps these itself. */
	[KEY_CREATED_AT - 1] = {"created_at", COLUMN_FIXED | COLUMN_MADE},
	[KEY_CREATED_BY - 1] = {"created_by", COLUMN_FIXED | COLUMN_MADE},
	[KEY_UPDATED_AT - 1] = {"updated_at", COLUMN_MADE},
	[KEY_UPDATED_BY - 1] = {"updated_by", COLUMN_MADE},
	/* How the token is stored.  A flush may sign a key anew. */
	[KEY_HINT - 1] = {"hint", COLUMN_FIXED | COLUMN_MADE},
	[KEY_DIGEST - 1] = {"digest", COLUMN_FIXED},
	[KEY_DIGEST_KIND - 1] = {"digest_kind", COLUMN_FIXED | COLUMN_MADE},
	[KEY_PEPPER_ID - 1] = {"pepper_id", COLUMN_FIXED | COLUMN_MADE},
	[KEY_PARENT - 1] = {"parent", COLUMN_SETTING | COLUMN_FIXED | COLUMN_MADE},
	[KEY_START - 1] = {"start", COLUMN_FIXED | COLUMN_MADE},
	/* Follows from replaces. */
	[KEY_FAMILY - 1] = {"family", COLUMN_FIXED | COLUMN_MADE},
	[KEY_OWNER - 1] = {"owner", COLUMN_SETTING},
	/* As created_by and updated_by. */
	[KEY_CREATED_BY_USER - 1] = {"created_by_user", COLUMN_FIXED | COLUMN_MADE},
	[KEY_UPDATED_BY_USER - 1] = {"updated_by_user", COLUMN_MADE},
	/* Goes with the family. */
	[KEY_LIMITS_RESET_AT - 1] = {"limits_reset_at", COLUMN_TOLD | COLUMN_FIXED | COLUMN_MADE}
};

StaticAssertDecl(lengthof(columns) == KEY_COLUMNS,
				 "each column of api_keys is in the list");

/* Return the flags of a column; of 0, a column that is not in the list. */
int
columns_flags(int column)
{
	return column > 0 ? columns[column - 1].flags : COLUMN_SETTING;
}

const char *
columns_name(int column)
{
	return columns[column - 1].name;
}

/* Return the number of a column in a table of that shape, or 0. */
int
columns_number(TupleDesc desc, int column)
{
	return store_column(desc, column, columns[column - 1].name);
}

/* Return the column with that number in a table of that shape; 0: none of ours. */
int
columns_of_number(TupleDesc desc, int number)
{
	if (number <= KEY_FIRST_COLUMNS)
		return number;
	for (int column = KEY_FIRST_COLUMNS + 1; column <= KEY_COLUMNS; column++)
		if (columns_number(desc, column) == number)
			return column;
	return 0;
}

/* Return the names of the columns that no event tells, text[], palloc'd. */
ArrayType *
columns_not_told(void)
{
	Datum		names[KEY_COLUMNS];
	int			count = 0;

	for (int i = 0; i < KEY_COLUMNS; i++)
		if ((columns[i].flags & COLUMN_TOLD) == 0)
			names[count++] = CStringGetTextDatum(columns[i].name);
	return construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT);
}
