/*
 * principal.c
 *		The key that this transaction has authenticated as.
 *
 * It lives in a setting, rk_apikeys.principal, because PostgreSQL then takes
 * care of savepoints, of the end of the transaction and of parallel workers.
 * The setting holds the key id alone; everything else is read from the key,
 * afresh, so that a key that is revoked in the middle of a transaction is
 * dead for its next statement.
 *
 * Trust: policies of the users' tables rest on this.  The check hook refuses
 * every value but authenticate()'s own, whoever sets it and in whatever way;
 * what remains is to clear it, which takes a superuser.  A principal that is
 * set but dead gives NULL and false, never another identity.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "cache.h"
#include "compat.h"
#include "principal.h"
#include "verify.h"

static char *principal = NULL;

/* True only while authenticate() sets the setting. */
static bool setting_it = false;

PG_FUNCTION_INFO_V1(rk_apikeys_current_key_id);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_tenant);
PG_FUNCTION_INFO_V1(rk_apikeys_current_scopes);
PG_FUNCTION_INFO_V1(rk_apikeys_has_scope);
PG_FUNCTION_INFO_V1(rk_apikeys_may_manage);
PG_FUNCTION_INFO_V1(rk_apikeys_no_principal);

static bool
check_principal(char **newval, void **extra, GucSource source)
{
	if (setting_it || InitializingParallelWorker ||
		(source == PGC_S_DEFAULT && (*newval)[0] == '\0'))
		return true;
	GUC_check_errcode(ERRCODE_INSUFFICIENT_PRIVILEGE);
	GUC_check_errmsg("parameter \"rk_apikeys.principal\" cannot be set");
	GUC_check_errhint("Use rk_apikeys.authenticate().");
	return false;
}

void
principal_init(void)
{
	DefineCustomStringVariable("rk_apikeys.principal",
							   "The key that this transaction has authenticated as.",
							   "Set by rk_apikeys.authenticate() alone.",
							   &principal, "",
							   PGC_SUSET,
							   COMPAT_GUC_NO_RESET | GUC_NO_RESET_ALL |
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE |
							   GUC_DISALLOW_IN_FILE,
							   check_principal, NULL, NULL);
}

/* Make a key the principal until the transaction ends. */
void
principal_set(const char *key_id)
{
	setting_it = true;
	PG_TRY();
	{
		(void) set_config_option("rk_apikeys.principal", key_id,
								 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	}
	PG_FINALLY();
	{
		setting_it = false;
	}
	PG_END_TRY();
}

/* Whether there is one, alive or dead. */
bool
principal_is_set(void)
{
	return principal[0] != '\0';
}

/* Its key id, alive or dead; NULL if there is none. */
const char *
principal_key_id(void)
{
	return principal_is_set() ? principal : NULL;
}

/*
 * Its key, if it is still good; NULL if it is not, or if there is none.  Good
 * until the next look into the cache.
 */
const StoredKey *
principal_key(void)
{
	const StoredKey *key;

	if (!principal_is_set())
		return NULL;
	key = cache_find(principal);
	return key != NULL && verify_state(key, GetCurrentTimestamp()) == STATS_VALID ?
		key : NULL;
}

/*
 * Whether the session may see and change keys at all: there is no principal,
 * or it is good and has the scope apikeys:manage.
 */
bool
principal_may_manage(void)
{
	const StoredKey *key;

	if (!principal_is_set())
		return true;
	key = principal_key();
	return key != NULL &&
		verify_scope_granted(key->scopes,
							 cstring_to_text(PRINCIPAL_MANAGE_SCOPE));
}

/*
 * For functions that reach the keys of all tenants past the policies: a
 * principal, which is of one tenant, is refused with 42501.
 */
void
principal_refuse(void)
{
	if (principal_is_set())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot administer the keys of all tenants",
						principal_key_id()),
				 errhint("Call it in a transaction that has not authenticated as a key.")));
}

/* rk_apikeys.current_key_id() → text; NULL without a principal. */
Datum
rk_apikeys_current_key_id(PG_FUNCTION_ARGS)
{
	const StoredKey *key = principal_key();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(key->key_id));
}

/* rk_apikeys.current_key_tenant() → text; NULL without a principal. */
Datum
rk_apikeys_current_key_tenant(PG_FUNCTION_ARGS)
{
	const StoredKey *key = principal_key();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(DatumGetTextPCopy(PointerGetDatum(key->tenant))));
}

/* rk_apikeys.current_scopes() → text[]; NULL without a principal. */
Datum
rk_apikeys_current_scopes(PG_FUNCTION_ARGS)
{
	const StoredKey *key = principal_key();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_ARRAYTYPE_P(DatumGetArrayTypePCopy(PointerGetDatum(key->scopes)));
}

/* rk_apikeys.has_scope(scope text) → boolean; false without a principal. */
Datum
rk_apikeys_has_scope(PG_FUNCTION_ARGS)
{
	const StoredKey *key;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	key = principal_key();
	PG_RETURN_BOOL(key != NULL &&
				   verify_scope_granted(key->scopes, PG_GETARG_TEXT_PP(0)));
}

/* rk_apikeys._may_manage() → boolean: principal_may_manage(). */
Datum
rk_apikeys_may_manage(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(principal_may_manage());
}

/*
 * rk_apikeys._no_principal() → boolean
 *
 * Does not look at the key: one that dies while a statement runs must not open
 * the other tenants' rows to the rest of it.
 */
Datum
rk_apikeys_no_principal(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!principal_is_set());
}
