/*
 * guard.c
 *		The row triggers of api_keys: how a key is made, and what may change.
 *
 * api_keys_make (BEFORE INSERT) gives a new row its key id, token and digest.
 * api_keys_guard (BEFORE UPDATE) is the state machine.  api_keys_settle (AFTER
 * UPDATE OR DELETE, fires always, also where replication applies a change)
 * tells every session that cached keys are stale, and deletes the usage row of
 * a key that is gone.
 *
 * Trust: they run as whoever writes to the table.  Column grants refuse most
 * of what they refuse, but pg_write_all_data bypasses grants.
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
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "caller.h"
#include "compat.h"
#include "guard.h"
#include "issued.h"
#include "pepper.h"
#include "principal.h"
#include "rk_apikeys.h"
#include "settings.h"
#include "store.h"
#include "verify.h"

/* The columns of a row of api_keys, by KeyColumn - 1. */
typedef struct KeyTuple
{
	Datum		values[KEY_COLUMNS];
	bool		nulls[KEY_COLUMNS];
} KeyTuple;

/* Columns that only the extension's owner may change, or give a new row. */
static const int fixed_columns[] = {
	KEY_KEY_ID, KEY_TENANT, KEY_PREFIX, KEY_ENVIRONMENT, KEY_REPLACES,
	KEY_CREATED_AT, KEY_CREATED_BY, KEY_HINT, KEY_DIGEST, KEY_DIGEST_KIND,
	KEY_PEPPER_ID
};

/* Columns of a new row that the trigger sets. */
static const int made_columns[] = {
	KEY_KEY_ID, KEY_PREFIX, KEY_GRACE_UNTIL, KEY_REVOKED_AT,
	KEY_REVOKED_REASON, KEY_CREATED_AT, KEY_CREATED_BY, KEY_UPDATED_AT,
	KEY_UPDATED_BY, KEY_HINT, KEY_DIGEST_KIND, KEY_PEPPER_ID
};

static KeyTuple *unpack(TriggerData *trigger, HeapTuple row);
static HeapTuple repack(TriggerData *trigger, HeapTuple row, KeyTuple *key);
static void make_token(KeyTuple *key);
static void make_imported(KeyTuple *key);
static bool same_text(Datum a, text *b);
static void check_principal(KeyTuple *key);
static void check_replaces(KeyTuple *key);
static void check_transition(KeyTuple *old, KeyTuple *new,
							 const bool *changed, Relation rel);
static void delete_usage(void *arg);

PG_FUNCTION_INFO_V1(rk_apikeys_keys_make);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_guard);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_settle);
PG_FUNCTION_INFO_V1(rk_apikeys_keys_settle_imported);

#define VALUE(key, column) ((key)->values[(column) - 1])
#define ISNULL(key, column) ((key)->nulls[(column) - 1])

static void
set_value(KeyTuple *key, int column, Datum value)
{
	VALUE(key, column) = value;
	ISNULL(key, column) = false;
}

/* The name of the role that logged in: who a change is put down to. */
static Datum
session_user_name(void)
{
	return CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false));
}

/*
 * The trigger data of a call that must come from the trigger of that name on
 * api_keys: anybody who can execute a trigger function could hang it on a
 * table of his own.
 */
TriggerData *
guard_trigger(FunctionCallInfo fcinfo, const char *name)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(trigger->tg_relation) != store_table("api_keys", true) ||
		strcmp(trigger->tg_trigger->tgname, name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function can only be called by trigger \"%s\" of table rk_apikeys.api_keys",
						name)));
	return trigger;
}

/*
 * api_keys_make, BEFORE INSERT.
 *
 * A row that comes without a digest is a new key.  A row with one is stored
 * as it is if it is complete (restored, copied), else it is an imported key;
 * only the owner of the table may bring one.
 */
Datum
rk_apikeys_keys_make(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_make");
	KeyTuple   *key = unpack(trigger, trigger->tg_trigtuple);
	bool		all[KEY_COLUMNS];
	bool		imported = !ISNULL(key, KEY_DIGEST);
	Datum		now = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());

	if (imported)
	{
		if (!object_ownercheck(RelationRelationId,
							   RelationGetRelid(trigger->tg_relation),
							   GetUserId()))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied to give an API key a digest"),
					 errhint("Use rk_apikeys.import_key().")));
		if (!ISNULL(key, KEY_KEY_ID) && !ISNULL(key, KEY_CREATED_AT))
			return PointerGetDatum(trigger->tg_trigtuple);
		make_imported(key);
	}
	else
	{
		for (int i = 0; i < (int) lengthof(made_columns); i++)
			if (!ISNULL(key, made_columns[i]))
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("column \"%s\" of a new API key cannot be given",
								NameStr(TupleDescAttr(RelationGetDescr(trigger->tg_relation),
													  made_columns[i] - 1)->attname)),
						 errhint("Leave it out: it is made when the row is inserted.")));
	}

	memset(all, true, sizeof(all));
	settings_check(key->values, key->nulls, all, DatumGetTimestampTz(now));
	check_principal(key);
	if (!ISNULL(key, KEY_REPLACES))
		check_replaces(key);
	set_value(key, KEY_CREATED_AT, now);
	set_value(key, KEY_CREATED_BY, session_user_name());
	set_value(key, KEY_UPDATED_AT, now);
	set_value(key, KEY_UPDATED_BY, session_user_name());
	if (!imported)
		make_token(key);
	return PointerGetDatum(repack(trigger, trigger->tg_trigtuple, key));
}

/*
 * api_keys_guard, BEFORE UPDATE: the state machine.  Moves updated_at and
 * updated_by when a setting really changes, and only then.
 */
Datum
rk_apikeys_keys_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_guard");
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	KeyTuple   *old = unpack(trigger, trigger->tg_trigtuple);
	KeyTuple   *new = unpack(trigger, trigger->tg_newtuple);
	bool		changed[KEY_COLUMNS];
	bool		setting_changed = false;

	for (int i = 0; i < KEY_COLUMNS; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		changed[i] = old->nulls[i] != new->nulls[i] ||
			(!old->nulls[i] &&
			 !datum_image_eq(old->values[i], new->values[i],
							 att->attbyval, att->attlen));
		/* What follows updated_by is how the key is kept, not a setting. */
		if (changed[i] && i + 1 < KEY_CREATED_AT)
			setting_changed = true;
	}

	settings_check(new->values, new->nulls, changed,
				   DatumGetTimestampTz(VALUE(new, KEY_CREATED_AT)));
	/* A token that is revoked, or signed anew, is proved: nothing is granted. */
	if (!caller_borrows())
		check_principal(new);
	if (!caller_owns(RelationGetRelid(trigger->tg_relation)))
		check_transition(old, new, changed, trigger->tg_relation);
	if (ISNULL(old, KEY_GRACE_UNTIL) && !ISNULL(new, KEY_GRACE_UNTIL))
		issued_note_rotation(TextDatumGetCString(VALUE(new, KEY_KEY_ID)));

	if (setting_changed)
	{
		set_value(new, KEY_UPDATED_AT,
				  TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
		set_value(new, KEY_UPDATED_BY, session_user_name());
	}
	return PointerGetDatum(repack(trigger, trigger->tg_newtuple, new));
}

/* api_keys_settle, AFTER UPDATE OR DELETE. */
Datum
rk_apikeys_keys_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_settle");
	Oid			usage;

	CacheInvalidateRelcache(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event) &&
		OidIsValid(usage = store_table("key_usage", true)))
	{
		KeyTuple   *key = unpack(trigger, trigger->tg_trigtuple);

		caller_run_as_owner(usage, delete_usage,
							DatumGetPointer(VALUE(key, KEY_KEY_ID)));
	}
	return PointerGetDatum(NULL);
}

/*
 * api_keys_settle_imported, AFTER INSERT of an imported key: sessions may have
 * remembered that there are none.
 */
Datum
rk_apikeys_keys_settle_imported(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = guard_trigger(fcinfo, "api_keys_settle_imported");

	CacheInvalidateRelcache(trigger->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * OwnerWork: delete the usage row of a key, under the latest snapshot: in a
 * REPEATABLE READ transaction the row may be younger than the transaction's.
 */
static void
delete_usage(void *arg)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	Datum		key_id = PointerGetDatum(arg);
	Snapshot	snapshot;

	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare("DELETE FROM rk_apikeys.key_usage WHERE key_id = $1",
						   1, &type);
		SPI_keepplan(plan);
	}
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SPI_execute_snapshot(plan, &key_id, NULL, snapshot, InvalidSnapshot,
						 false, false, 0);
	UnregisterSnapshot(snapshot);
	SPI_finish();
}

static KeyTuple *
unpack(TriggerData *trigger, HeapTuple row)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	KeyTuple   *key = palloc(sizeof(KeyTuple));

	/* heap_getattr, so that columns somebody has added do no harm */
	for (int i = 0; i < KEY_COLUMNS; i++)
		key->values[i] = heap_getattr(row, i + 1, desc, &key->nulls[i]);
	return key;
}

static HeapTuple
repack(TriggerData *trigger, HeapTuple row, KeyTuple *key)
{
	int			columns[KEY_COLUMNS];

	for (int i = 0; i < KEY_COLUMNS; i++)
		columns[i] = i + 1;
	return heap_modify_tuple_by_cols(row,
									 RelationGetDescr(trigger->tg_relation),
									 KEY_COLUMNS, columns, key->values,
									 key->nulls);
}

/* Make the token of a new key, and keep it for reveal(). */
static void
make_token(KeyTuple *key)
{
	char		token[TOKEN_MAX_LEN + 1];
	size_t		len;
	TokenParts	parts;
	bytea	   *digest = palloc(VARHDRSZ + DIGEST_SHA256_LEN);
	const Pepper *pepper = pepper_current();

	len = token_make(rk_apikeys_token_prefix,
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
				  CStringGetTextDatum(rk_apikeys_token_prefix));
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

/* Complete a key that was issued elsewhere, of which only the digest came. */
static void
make_imported(KeyTuple *key)
{
	char		key_id[TOKEN_KEY_ID_LEN + 1];

	if (ISNULL(key, KEY_DIGEST_KIND))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("digest_kind of an imported API key is missing"),
				 errhint("Use sha256 or sha512.")));
	token_make_key_id(key_id);
	set_value(key, KEY_KEY_ID, CStringGetTextDatum(key_id));
	set_value(key, KEY_PREFIX, CStringGetTextDatum(rk_apikeys_token_prefix));
}

static bool
same_text(Datum a, text *b)
{
	return DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID, a,
												PointerGetDatum(b)));
}

/*
 * A key that is made or changed by a principal may have only what the
 * principal has: its tenant, its environment, and scopes that its own scopes
 * grant.
 */
static void
check_principal(KeyTuple *key)
{
	const StoredKey *principal;
	Datum	   *scopes;
	int			count;

	if (!principal_is_set())
		return;
	principal = principal_key();
	if (principal == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" is no longer good",
						principal_key_id())));
	if (!same_text(VALUE(key, KEY_TENANT), principal->tenant))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot manage keys of another tenant",
						principal->key_id)));
	if (!same_text(VALUE(key, KEY_ENVIRONMENT), principal->environment))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot manage keys of environment \"%s\"",
						principal->key_id,
						TextDatumGetCString(VALUE(key, KEY_ENVIRONMENT)))));
	deconstruct_array(DatumGetArrayTypeP(VALUE(key, KEY_SCOPES)), TEXTOID, -1,
					  false, TYPALIGN_INT, &scopes, NULL, &count);
	for (int i = 0; i < count; i++)
		if (!verify_scope_granted(principal->scopes, DatumGetTextPP(scopes[i])))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("API key \"%s\" cannot grant scope \"%s\", which it does not have",
							principal->key_id, TextDatumGetCString(scopes[i]))));
}

/*
 * A new key may replace one that the caller can see, that is of the same
 * tenant, and that was rotated by this very transaction.  Anything else is "no
 * such key", so that nothing is learned about a neighbour's.
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
				 errmsg("API key that is to be replaced does not exist, or was not rotated by this transaction"),
				 errhint("Use rk_apikeys.rotate_key().")));
}

/*
 * What a caller other than the owner may not change.  A flush, with borrowed
 * rights, stores digests that were signed with a newer pepper.
 */
static void
check_transition(KeyTuple *old, KeyTuple *new, const bool *changed,
				 Relation rel)
{
	for (int i = 0; i < (int) lengthof(fixed_columns); i++)
		if (changed[fixed_columns[i] - 1] &&
			!(caller_borrows() && (fixed_columns[i] == KEY_DIGEST ||
								   fixed_columns[i] == KEY_PEPPER_ID)))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("column \"%s\" of an API key never changes",
							NameStr(TupleDescAttr(RelationGetDescr(rel),
												  fixed_columns[i] - 1)->attname))));
	if (changed[KEY_UPDATED_AT - 1] || changed[KEY_UPDATED_BY - 1])
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("updated_at and updated_by of an API key cannot be set")));

	if (changed[KEY_REVOKED_AT - 1])
	{
		if (!ISNULL(old, KEY_REVOKED_AT))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("API key \"%s\" is revoked for good",
							TextDatumGetCString(VALUE(old, KEY_KEY_ID))),
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
				 errmsg("revoked_reason of API key \"%s\" is final",
						TextDatumGetCString(VALUE(old, KEY_KEY_ID)))));
	if (changed[KEY_GRACE_UNTIL - 1] && !ISNULL(old, KEY_GRACE_UNTIL) &&
		(ISNULL(new, KEY_GRACE_UNTIL) ||
		 DatumGetTimestampTz(VALUE(new, KEY_GRACE_UNTIL)) >
		 DatumGetTimestampTz(VALUE(old, KEY_GRACE_UNTIL))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("grace_until of API key \"%s\" can only be shortened",
						TextDatumGetCString(VALUE(old, KEY_KEY_ID))),
				 errhint("Its successor is in use already; create or rotate another key.")));
}
