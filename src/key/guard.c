/*
 * guard.c
 *		The row triggers of api_keys: how a key is made, and what may change.
 *
 * api_keys_make (BEFORE INSERT) gives a new row its key id, token and digest.
 * api_keys_guard (BEFORE UPDATE) is the state machine.  api_keys_settle (AFTER
 * UPDATE OR DELETE) invalidates every session's cached keys, and deletes the
 * usage row of a deleted key.  It is ENABLE ALWAYS, so it also fires where
 * replication applies a change.  api_keys_parent (AFTER INSERT, deferred) checks
 * at COMMIT that the principal that made a key was not revoked meanwhile.
 *
 * Trust: the triggers run as the role that writes to the table.  Column grants
 * refuse most of the same writes, but pg_write_all_data bypasses grants.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class_d.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type_d.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/settings.h"
#include "base/store.h"
#include "compat.h"
#include "key/cache.h"
#include "key/check.h"
#include "key/columns.h"
#include "key/delegate.h"
#include "key/guard.h"
#include "key/issued.h"
#include "key/policy.h"
#include "key/session.h"
#include "token/pepper.h"

/* The columns of a row of api_keys, by KeyColumn - 1. */
typedef struct KeyTuple
{
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
} KeyTuple;

/* The key that a new key replaces. */
typedef struct Replaced
{
	Datum		key_id;
	bool		found;
	KeyTuple	key;
} Replaced;

static KeyTuple *unpack(TriggerData *trigger, HeapTuple row);
static void unpack_into(KeyTuple *key, TupleDesc desc, HeapTuple row);
static void read_replaced(void *arg);
static void copy_settings(KeyTuple *key, KeyTuple *old);
static HeapTuple repack(TriggerData *trigger, HeapTuple row, KeyTuple *key);
static void make_token(KeyTuple *key);
static void set_defaults(KeyTuple *key);
static void make_imported(KeyTuple *key);
static void check_replaces(KeyTuple *key);
static void set_family(KeyTuple *key, const Replaced *old);
static void check_transition(KeyTuple *old, KeyTuple *new,
							 const bool *changed, Relation rel);
static void delete_usage(void *arg);

/* The rotation whose successor rotate_key() inserts. */
GuardRotation guard_rotation = {.key_id = NULL};

PG_FUNCTION_INFO_V1(rk_apikeys_keys_make);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_guard);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_settle);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_settle_imported);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_parent);

#define VALUE(key, column) ((key)->values[(column) - 1])
#define ISNULL(key, column) ((key)->nulls[(column) - 1])

static void
set_value(KeyTuple *key, int column, Datum value)
{
	VALUE(key, column) = value;
	ISNULL(key, column) = false;
}

/* Return the name of the role that logged in, as created_by and updated_by. */
static Datum
session_user_name(void)
{
	return CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false));
}

/* Set a column to the end user; NULL if there is none. */
static void
set_end_user(KeyTuple *key, int column)
{
	const char *end_user = caller_end_user();

	ISNULL(key, column) = end_user == NULL;
	if (end_user != NULL)
		VALUE(key, column) = CStringGetTextDatum(end_user);
}

/* Raise 22023 if a change of keys needs an end user and there is none. */
static void
check_end_user(void)
{
	if (settings_require_end_user && caller_end_user() == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a change of API keys needs an end user"),
				 errdetail("rk_apikeys.require_end_user is on."),
				 errhint("Set rk_apikeys.end_user to the person who makes the change.")));
}

/* Return the trigger data of a call by a trigger of api_keys. */
TriggerData *
guard_trigger(FunctionCallInfo fcinfo, const char *name)
{
	return guard_trigger_of(fcinfo, "api_keys", name);
}

/*
 * Return the trigger data of a call.  Raise 39P01 unless the call comes from
 * the trigger of that name on that table.  A role that can execute a trigger
 * function could attach the function to a table of its own.
 */
TriggerData *
guard_trigger_of(FunctionCallInfo fcinfo, const char *table, const char *name)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(trigger->tg_relation) != store_table(table, true) ||
		strcmp(trigger->tg_trigger->tgname, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function can only be called by trigger \"%s\" of table rk_apikeys.%s",
						name, table)));
	return trigger;
}

/*
 * api_keys_make, BEFORE INSERT.
 *
 * A row without a digest is a new key.  Only the owner of the table may insert
 * a row with a digest, or 42501 is raised.  If such a row has a key_id and a
 * created_at, it was restored or copied, and is stored as it is.  Only the start
 * of an imported token is never NULL.  Otherwise the row is an imported key.
 */
Datum
rk_apikeys_keys_make(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_make");
	KeyTuple   *key = unpack(trigger, trigger->tg_trigtuple);
	bool		all[KEY_COLUMNS];
	bool		imported = !ISNULL(key, KEY_DIGEST);
	bool		copied = false;
	Replaced	old = {.found = false};
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());

	if (imported)
	{
		if (!object_ownercheck(RelationRelationId,
							   RelationGetRelid(trigger->tg_relation),
							   GetUserId()))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to set the digest of an API key"),
					 errhint("Use rk_apikeys.import_key().")));
		if (!ISNULL(key, KEY_KEY_ID) && !ISNULL(key, KEY_CREATED_AT))
		{
			/* A dump of an earlier release has no start. */
			if (ISNULL(key, KEY_DIGEST_KIND) || !ISNULL(key, KEY_START) ||
				store_same_text(DatumGetTextPP(VALUE(key, KEY_DIGEST_KIND)), cstring_to_text("native")))
				return PointerGetDatum(trigger->tg_trigtuple);
			set_value(key, KEY_START, CStringGetTextDatum(""));
			return PointerGetDatum(repack(trigger, trigger->tg_trigtuple, key));
		}
		make_imported(key);
	}
	else
	{
		for (int column = 1; column <= KEY_COLUMNS; column++)
			if ((columns_flags(column) & COLUMN_MADE) != 0 && !ISNULL(key, column))
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("column \"%s\" of a new API key cannot be given",
								columns_name(column)),
						 errhint("Leave the column out, because the insert sets it.")));
	}

	check_end_user();
	if (!ISNULL(key, KEY_REPLACES))
	{
		old.key_id = VALUE(key, KEY_REPLACES);
		caller_run_as_owner(RelationGetRelid(trigger->tg_relation),
							read_replaced, &old);
		if (old.found && guard_rotation.key_id != NULL &&
			store_same_text(DatumGetTextPP(old.key_id), cstring_to_text(guard_rotation.key_id)))
		{
			copy_settings(key, &old.key);
			copied = true;
		}
	}
	set_defaults(key);
	memset(all, true, sizeof(all));
	check_settings(key->values, key->nulls, all, DatumGetTimestampTz(now));
	delegate_check(key->values, key->nulls, all);
	if (!copied)
		delegate_check_member(key->values);
	if (!ISNULL(key, KEY_REPLACES))
		check_replaces(key);
	policy_check(key->values, key->nulls, all, DatumGetTimestampTz(now));
	if (principal_is_set())
		set_value(key, KEY_PARENT, CStringGetTextDatum(principal_key_id()));
	/* A cascade of the old key's parent must reach the new key too. */
	else if (old.found && !ISNULL(&old.key, KEY_PARENT))
		set_value(key, KEY_PARENT, VALUE(&old.key, KEY_PARENT));
	set_value(key, KEY_CREATED_AT, now);
	set_value(key, KEY_CREATED_BY, session_user_name());
	set_end_user(key, KEY_CREATED_BY_USER);
	set_value(key, KEY_UPDATED_AT, now);
	set_value(key, KEY_UPDATED_BY, session_user_name());
	set_end_user(key, KEY_UPDATED_BY_USER);
	if (!imported)
		make_token(key);
	set_family(key, &old);
	if (copied)
	{
		text_to_cstring_buffer(DatumGetTextPP(VALUE(key, KEY_KEY_ID)),
							   guard_rotation.successor, sizeof(guard_rotation.successor));
		guard_rotation.old_end = ISNULL(&old.key, KEY_EXPIRES_AT) ? DT_NOEND :
			DatumGetTimestampTz(VALUE(&old.key, KEY_EXPIRES_AT));
	}
	return PointerGetDatum(repack(trigger, trigger->tg_trigtuple, key));
}

/*
 * api_keys_guard, BEFORE UPDATE: the state machine.
 *
 * Set updated_at and updated_by if and only if the value of a dated column
 * changes.
 */
Datum
rk_apikeys_keys_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_guard");
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	KeyTuple   *old = unpack(trigger, trigger->tg_trigtuple);
	KeyTuple   *new = unpack(trigger, trigger->tg_newtuple);
	bool		changed[KEY_COLUMNS] = {0};
	bool		dated = false;

	for (int number = 1; number <= desc->natts; number++)
	{
		int			column;

		if (!guard_differs(trigger, number))
			continue;
		column = columns_of_number(desc, number);
		if (column > 0)
			changed[column - 1] = true;
		/* A flush changes no setting; what a DBA's trigger adds does not count. */
		if ((columns_flags(column) & COLUMN_DATED) != 0 &&
			(column > 0 || !caller_borrows()))
			dated = true;
	}

	check_settings(new->values, new->nulls, changed,
				   DatumGetTimestampTz(VALUE(new, KEY_CREATED_AT)));
	/* Whoever holds a token may end its key, so revoke_token() needs no end user. */
	if (dated && !caller_borrows())
		check_end_user();
	/* With borrowed rights, revoke_token() and a flush give a key no rights. */
	if (!caller_borrows())
	{
		delegate_check_old(old->values);
		delegate_check(new->values, new->nulls, changed);
		if (changed[KEY_SCOPES - 1])
			delegate_check_member(new->values);
	}
	policy_check(new->values, new->nulls, changed,
				 DatumGetTimestampTz(VALUE(new, KEY_CREATED_AT)));
	if (!caller_owns(RelationGetRelid(trigger->tg_relation)))
		check_transition(old, new, changed, trigger->tg_relation);
	if (ISNULL(old, KEY_GRACE_UNTIL) && !ISNULL(new, KEY_GRACE_UNTIL))
		issued_note_rotation(TextDatumGetCString(VALUE(new, KEY_KEY_ID)));

	if (dated)
	{
		set_value(new, KEY_UPDATED_AT,
				  TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
		set_value(new, KEY_UPDATED_BY, session_user_name());
		set_end_user(new, KEY_UPDATED_BY_USER);
	}
	return PointerGetDatum(repack(trigger, trigger->tg_newtuple, new));
}

/*
 * api_keys_settle, AFTER UPDATE OR DELETE.
 *
 * Invalidate the cached keys of all sessions.  Check who deletes a key, and delete
 * the usage row of a deleted key.
 */
Datum
rk_apikeys_keys_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_settle");
	Oid			usage;

	cache_tell_change(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
	{
		KeyTuple   *key = unpack(trigger, trigger->tg_trigtuple);

		if (!caller_borrows())
		{
			/* Not where replication applies the change of another server. */
			if (SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
				check_end_user();
			delegate_check_old(key->values);
		}
		if (OidIsValid(usage = store_table("key_usage", true)))
			caller_run_as_owner(usage, delete_usage,
								DatumGetPointer(VALUE(key, KEY_KEY_ID)));
	}
	return PointerGetDatum(NULL);
}

/*
 * api_keys_settle_imported, AFTER INSERT of an imported key.
 *
 * Invalidate the caches of all sessions, because a session may remember that
 * there are no imported keys.
 */
Datum
rk_apikeys_keys_settle_imported(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_settle_imported");

	cache_tell_change(trigger->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * api_keys_parent, AFTER INSERT of a key with a parent, deferred to COMMIT.
 *
 * Check the principal that made the key in this transaction.  A parent that was
 * inherited or restored is not checked.
 */
Datum
rk_apikeys_keys_parent(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_parent");
	KeyTuple   *key = unpack(trigger, trigger->tg_trigtuple);
	const char *principal =
		issued_principal(TextDatumGetCString(VALUE(key, KEY_KEY_ID)));

	if (principal != NULL)
		caller_run_as_owner(RelationGetRelid(trigger->tg_relation),
							delegate_lock, unconstify(char *, principal));
	return PointerGetDatum(NULL);
}

/*
 * OwnerWork: delete the usage row of a key.  The row may be newer than the
 * snapshot of the transaction.
 */
static void
delete_usage(void *arg)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	Datum		key_id = PointerGetDatum(arg);

	SPI_connect();
	now_execute(&plan, "DELETE FROM rk_apikeys.key_usage WHERE key_id = $1",
				1, &type, &key_id);
	SPI_finish();
}

/* Return the columns of a row, palloc'd. */
static KeyTuple *
unpack(TriggerData *trigger, HeapTuple row)
{
	KeyTuple   *key = palloc(sizeof(KeyTuple));

	unpack_into(key, RelationGetDescr(trigger->tg_relation), row);
	return key;
}

static void
unpack_into(KeyTuple *key, TupleDesc desc, HeapTuple row)
{
	/* Not heap_deform_tuple(), because a DBA may have added columns. */
	for (int i = 0; i < KEY_COLUMNS; i++)
	{
		int			number = columns_number(desc, i + 1);

		key->nulls[i] = true;
		if (number > 0)
			key->values[i] = heap_getattr(row, number, desc, &key->nulls[i]);
	}
}

/*
 * OwnerWork: read the row of the key that a new key replaces.  In old->key its
 * columns live in the caller's memory context.
 */
static void
read_replaced(void *arg)
{
	Replaced   *old = arg;
	Oid			type = TEXTOID;

	SPI_connect();
	SPI_execute_with_args("SELECT * FROM rk_apikeys.api_keys WHERE key_id = $1",
						  1, &type, &old->key_id, NULL, false, 1);
	if ((old->found = SPI_processed == 1))
		unpack_into(&old->key, SPI_tuptable->tupdesc,
					SPI_copytuple(SPI_tuptable->vals[0]));
	SPI_finish();
}

/*
 * Give the successor that rotate_key() makes the settings of the old key.  Without
 * an expiry of its own the successor ends with the old key, and within
 * max_lifetime of the setting and of the policies.
 */
static void
copy_settings(KeyTuple *key, KeyTuple *old)
{
	for (int column = 1; column <= KEY_COLUMNS; column++)
		if ((columns_flags(column) & COLUMN_COPIED) != 0)
		{
			VALUE(key, column) = VALUE(old, column);
			ISNULL(key, column) = ISNULL(old, column);
		}
	if (!guard_rotation.has_expires_at)
	{
		TimestampTz end = ISNULL(old, KEY_EXPIRES_AT) ? DT_NOEND :
			DatumGetTimestampTz(VALUE(old, KEY_EXPIRES_AT));

		end = Min(end, check_latest_end(GetCurrentTransactionStartTimestamp()));
		end = Min(end, policy_latest_end(DatumGetTextPP(VALUE(old, KEY_TENANT)),
										 DatumGetTextPP(VALUE(old, KEY_ENVIRONMENT)),
										 GetCurrentTransactionStartTimestamp()));
		/* check_settings() stores infinity as NULL. */
		set_value(key, KEY_EXPIRES_AT, TimestampTzGetDatum(end));
	}
	guard_rotation.key_id = NULL;	/* one key only */
}

/* Return a copy of the row with the columns of the key, palloc'd. */
static HeapTuple
repack(TriggerData *trigger, HeapTuple row, KeyTuple *key)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	int			numbers[KEY_COLUMNS];
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
	int			count = 0;

	for (int i = 0; i < KEY_COLUMNS; i++)
	{
		int			number = columns_number(desc, i + 1);

		if (number == 0)
			continue;
		numbers[count] = number;
		values[count] = key->values[i];
		nulls[count++] = key->nulls[i];
	}
	return heap_modify_tuple_by_cols(row, desc, count, numbers, values, nulls);
}

/*
 * Return whether the update of a trigger changes a column, by its number in the
 * table.  A dropped column never changes.
 */
bool
guard_differs(TriggerData *trigger, int column)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	Form_pg_attribute att = TupleDescAttr(desc, column - 1);
	bool		old_null;
	bool		new_null;
	Datum		old;
	Datum		new;

	if (att->attisdropped)
		return false;
	old = heap_getattr(trigger->tg_trigtuple, column, desc, &old_null);
	new = heap_getattr(trigger->tg_newtuple, column, desc, &new_null);
	return old_null != new_null ||
		(!old_null && !datum_image_eq(old, new, att->attbyval, att->attlen));
}

/*
 * Make the token of a new key, set the columns that depend on the token, and
 * keep the token for reveal().  Raise 58030 if the pepper cannot be read, and
 * 54000 as issued_keep() does.
 */
static void
make_token(KeyTuple *key)
{
	char		token[TOKEN_MAX_LEN + 1];
	size_t		len;
	TokenParts	parts;
	bytea	   *digest = palloc(VARHDRSZ + DIGEST_SHA256_LEN);
	const Pepper *pepper = pepper_current();

	len = token_make(settings_token_prefix,
					 TextDatumGetCString(VALUE(key, KEY_ENVIRONMENT)), token);
	PG_TRY();
	{
		if (!token_parse(token, len, &parts))
			elog(ERROR, "a new token is not well-formed");
		SET_VARSIZE(digest, VARHDRSZ + DIGEST_SHA256_LEN);
		if (pepper == NULL)
			digest_sha256(token, len, (uint8 *) VARDATA(digest));
		else
		{
			digest_hmac_sha256(pepper->secret, pepper->len, token, len,
							   (uint8 *) VARDATA(digest));
			set_value(key, KEY_PEPPER_ID, Int16GetDatum(pepper->id));
		}
		set_value(key, KEY_KEY_ID,
				  PointerGetDatum(cstring_to_text_with_len(parts.key_id,
														   TOKEN_KEY_ID_LEN)));
		set_value(key, KEY_PREFIX,
				  CStringGetTextDatum(settings_token_prefix));
		set_value(key, KEY_HINT,
				  PointerGetDatum(cstring_to_text_with_len(parts.secret + TOKEN_SECRET_LEN - TOKEN_HINT_LEN,
														   TOKEN_HINT_LEN)));
		set_value(key, KEY_DIGEST, PointerGetDatum(digest));
		set_value(key, KEY_DIGEST_KIND, CStringGetTextDatum("native"));
		issued_keep(parts.key_id, token, len);
	}
	PG_FINALLY();
	{
		explicit_bzero(token, sizeof(token));
	}
	PG_END_TRY();
}

/* Set the columns of a new key that are NULL to their defaults. */
static void
set_defaults(KeyTuple *key)
{
	if (ISNULL(key, KEY_TENANT))
	{
		char	   *tenant = session_tenant();

		if (tenant != NULL)
			set_value(key, KEY_TENANT, CStringGetTextDatum(tenant));
	}
	if (ISNULL(key, KEY_DESCRIPTION))
		set_value(key, KEY_DESCRIPTION, CStringGetTextDatum(""));
	if (ISNULL(key, KEY_ENVIRONMENT))
		set_value(key, KEY_ENVIRONMENT,
				  CStringGetTextDatum(settings_default_environment));
	if (ISNULL(key, KEY_SCOPES))
		set_value(key, KEY_SCOPES, PointerGetDatum(construct_empty_array(TEXTOID)));
	if (ISNULL(key, KEY_METADATA))
		set_value(key, KEY_METADATA,
				  DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	if (ISNULL(key, KEY_ENABLED))
		set_value(key, KEY_ENABLED, BoolGetDatum(true));
	if (ISNULL(key, KEY_OWNER) && session_is_member())
		set_end_user(key, KEY_OWNER);
}

/*
 * Set the key id, the prefix and a missing start of a key that was issued
 * elsewhere.  Raise 22023 if the key has no digest_kind.
 */
static void
make_imported(KeyTuple *key)
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];

	if (ISNULL(key, KEY_DIGEST_KIND))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("digest_kind of an imported API key cannot be null"),
				 errhint("Use sha256 or sha512.")));
	token_make_key_id(key_id);
	set_value(key, KEY_KEY_ID, CStringGetTextDatum(key_id));
	set_value(key, KEY_PREFIX, CStringGetTextDatum(settings_token_prefix));
	if (ISNULL(key, KEY_START))
		set_value(key, KEY_START, CStringGetTextDatum(""));
}

/*
 * Check the key that a new key replaces.  The caller must see the old key, both
 * must have the same tenant, and this transaction must have rotated the old
 * key.  Every failure raises 42704 with the same message, so that a caller
 * learns nothing about another tenant's keys.
 */
static void
check_replaces(KeyTuple *key)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {VALUE(key, KEY_REPLACES), VALUE(key, KEY_TENANT)};
	char	   *replaces = TextDatumGetCString(values[0]);
	bool		good = false;

	if (strlen(replaces) == TOKEN_KEY_ID_LEN && !ISNULL(key, KEY_TENANT) &&
		issued_was_rotated(replaces))
	{
		SPI_connect();
		SPI_execute_with_args("SELECT FROM rk_apikeys.api_keys"
							  " WHERE key_id OPERATOR(pg_catalog.=) $1"
							  " AND tenant OPERATOR(pg_catalog.=) $2"
							  " AND grace_until IS NOT NULL",
							  2, types, values, NULL, false, 1);
		good = SPI_processed == 1;
		SPI_finish();
	}
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("API key to replace does not exist, or was not rotated by this transaction"),
				 errhint("Use rk_apikeys.rotate_key().")));
}

/*
 * Set the family of a new key: that of the key that it replaces, or its own id.
 * A key that replaces another one has its owner too.
 */
static void
set_family(KeyTuple *key, const Replaced *old)
{
	if (!old->found)
		set_value(key, KEY_FAMILY, VALUE(key, KEY_KEY_ID));
	else
	{
		set_value(key, KEY_FAMILY, ISNULL(&old->key, KEY_FAMILY) ?
				  old->key_id : VALUE(&old->key, KEY_FAMILY));
		if (ISNULL(key, KEY_OWNER) && !ISNULL(&old->key, KEY_OWNER))
			set_value(key, KEY_OWNER, VALUE(&old->key, KEY_OWNER));
		/* Else the successor would have limits of its own. */
		if (!ISNULL(&old->key, KEY_LIMITS_RESET_AT))
			set_value(key, KEY_LIMITS_RESET_AT, VALUE(&old->key, KEY_LIMITS_RESET_AT));
	}
}

/*
 * Check the changes of a caller other than the owner.  A flush, with borrowed
 * rights, may store a digest that was signed with a newer pepper, and
 * reset_limit() may note a reset.
 *
 * Raise 42501 for a column that such a caller may not change.  Raise 55000 for a
 * change that undoes a revocation or prolongs a grace period.  Raise 22023 for
 * a revoked_at other than now().
 */
static void
check_transition(KeyTuple *old, KeyTuple *new, const bool *changed,
				 Relation rel)
{
	for (int column = 1; column <= KEY_COLUMNS; column++)
		if ((columns_flags(column) & COLUMN_FIXED) != 0 && changed[column - 1] &&
			!(caller_borrows() && (column == KEY_DIGEST ||
								   column == KEY_PEPPER_ID ||
								   column == KEY_LIMITS_RESET_AT)))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("column \"%s\" of an API key cannot be changed",
							columns_name(column))));
	if (changed[KEY_UPDATED_AT - 1] || changed[KEY_UPDATED_BY - 1] ||
		changed[KEY_UPDATED_BY_USER - 1])
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("updated_at, updated_by and updated_by_user of an API key cannot be set")));

	if (changed[KEY_REVOKED_AT - 1])
	{
		if (!ISNULL(old, KEY_REVOKED_AT))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("revoked_at of API key \"%s\" cannot be changed",
							TextDatumGetCString(VALUE(old, KEY_KEY_ID))),
					 errdetail("A revocation is final."),
					 errhint("Create a new key.")));
		if (DatumGetTimestampTz(VALUE(new, KEY_REVOKED_AT)) !=
			GetCurrentTransactionStartTimestamp())
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("revoked_at can only be set to now(), not to %s",
							timestamptz_to_str(DatumGetTimestampTz(VALUE(new, KEY_REVOKED_AT)))),
					 errhint("Use rk_apikeys.revoke_key(), or expires_at for a later end.")));
	}
	if (changed[KEY_REVOKED_REASON - 1] && !ISNULL(old, KEY_REVOKED_REASON))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("revoked_reason of API key \"%s\" cannot be changed",
						TextDatumGetCString(VALUE(old, KEY_KEY_ID))),
				 errdetail("The reason for a revocation can be set only once.")));
	if (changed[KEY_GRACE_UNTIL - 1] && !ISNULL(old, KEY_GRACE_UNTIL) &&
		(ISNULL(new, KEY_GRACE_UNTIL) ||
		 DatumGetTimestampTz(VALUE(new, KEY_GRACE_UNTIL)) >
		 DatumGetTimestampTz(VALUE(old, KEY_GRACE_UNTIL))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("grace_until of API key \"%s\" can only be moved to an earlier time",
						TextDatumGetCString(VALUE(old, KEY_KEY_ID))),
				 errdetail("The key's successor is in use already."),
				 errhint("Create or rotate another key.")));
}
