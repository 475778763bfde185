/*
 * session.c
 *		Whose keys this session manages, and as which key.
 *
 * A principal that is set but whose key is dead gives NULL and false in every
 * function here, never another identity.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/caller.h"
#include "base/grant.h"
#include "base/principal.h"
#include "base/settings.h"
#include "compat.h"
#include "key/cache.h"
#include "key/session.h"

static bool has_role(const char *name);

PG_FUNCTION_INFO_V1(rk_apikeys_current_tenant);
PG_FUNCTION_INFO_V1(rk_apikeys_current_end_user);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_id);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_tenant);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_environment);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_owner);
PG_FUNCTION_INFO_V1(rk_apikeys_current_key_family);
PG_FUNCTION_INFO_V1(rk_apikeys_current_scopes);
PG_FUNCTION_INFO_V1(rk_apikeys_has_scope);
PG_FUNCTION_INFO_V1(rk_apikeys_may_manage);
PG_FUNCTION_INFO_V1(rk_apikeys_no_principal);
PG_FUNCTION_INFO_V1(rk_apikeys_principal_environment);

/*
 * Return the principal's key; NULL without a principal, or if its key is not
 * good.  The result is valid until the next look into the cache.
 */
const StoredKey *
session_principal(void)
{
	const StoredKey *key;

	if (principal_key_id() == NULL)
		return NULL;
	key = cache_find(principal_key_id());
	return key != NULL &&
		grant_state(key, GetCurrentTimestamp()) == VERDICT_VALID ? key : NULL;
}

/*
 * Return whether the session may see and change keys at all: it has no
 * principal, or the principal is good and has the scope apikeys:manage.
 */
bool
session_may_manage(void)
{
	const StoredKey *key;

	if (!principal_is_set())
		return true;
	key = session_principal();
	return key != NULL &&
		grant_scope(key->scopes, cstring_to_text(SESSION_MANAGE_SCOPE));
}

/*
 * Return the tenant whose keys the session manages, palloc'd.  With a principal
 * it is the principal's tenant; NULL if the principal's key is not good.
 * Without a principal it is the setting rk_apikeys.tenant, or, if that is
 * empty, the name of the calling role.
 */
char *
session_tenant(void)
{
	if (principal_is_set())
	{
		const StoredKey *key = session_principal();

		return key == NULL ? NULL : text_to_cstring(key->tenant);
	}
	if (settings_tenant[0] != '\0')
		return pstrdup(settings_tenant);
	return GetUserNameFromId(caller_role(), false);
}

/*
 * Return the environment of the principal's key, palloc'd; NULL without a good
 * principal.  A principal manages the keys of its own environment only.
 */
char *
session_environment(void)
{
	const StoredKey *key = session_principal();

	return key == NULL ? NULL : text_to_cstring(key->environment);
}

/*
 * Return whether the caller has a role that reads every tenant's keys.  With a
 * principal the answer is false, because a key sees its own tenant only,
 * whatever the role.
 */
bool
session_sees_all_tenants(void)
{
	return !principal_is_set() &&
		(has_role("rk_apikeys_admin") || has_role("rk_apikeys_auditor"));
}

/*
 * Return whether the caller changes only keys that its end user owns: it is a
 * member, and has no role that manages others' keys.
 */
bool
session_is_member(void)
{
	return has_role("rk_apikeys_member") && !has_role("rk_apikeys_manager") &&
		!has_role("rk_apikeys_admin");
}

/* Return whether the caller also sees only those keys. */
bool
session_sees_own_keys(void)
{
	return session_is_member() && !has_role("rk_apikeys_auditor");
}

/* Return whether the caller has the rights of a group role. */
static bool
has_role(const char *name)
{
	Oid			role = get_role_oid(name, true);

	return OidIsValid(role) && has_privs_of_role(caller_role(), role);
}

/*
 * rk_apikeys.current_tenant() -> text
 *
 * Return session_tenant().  The policies of the extension's tables compare with
 * it.  Policies of other tables must not, because a session can set it.
 */
Datum
rk_apikeys_current_tenant(PG_FUNCTION_ARGS)
{
	char	   *tenant = session_tenant();

	if (tenant == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(tenant));
}

/* rk_apikeys.current_end_user() -> text: caller_end_user(). */
Datum
rk_apikeys_current_end_user(PG_FUNCTION_ARGS)
{
	const char *end_user = caller_end_user();

	if (end_user == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(end_user));
}

/* rk_apikeys.current_key_id() -> text; NULL without a good principal. */
Datum
rk_apikeys_current_key_id(PG_FUNCTION_ARGS)
{
	const StoredKey *key = session_principal();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(key->key_id));
}

/* rk_apikeys.current_key_tenant() -> text; NULL without a good principal. */
Datum
rk_apikeys_current_key_tenant(PG_FUNCTION_ARGS)
{
	const StoredKey *key = session_principal();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(DatumGetTextPCopy(PointerGetDatum(key->tenant))));
}

/* rk_apikeys.current_key_environment() -> text; NULL without a good principal. */
Datum
rk_apikeys_current_key_environment(PG_FUNCTION_ARGS)
{
	return rk_apikeys_principal_environment(fcinfo);
}

/*
 * rk_apikeys.current_key_owner() -> text; NULL without a good principal, or if
 * its key is the tenant's.
 */
Datum
rk_apikeys_current_key_owner(PG_FUNCTION_ARGS)
{
	const StoredKey *key = session_principal();

	if (key == NULL || key->owner == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PointerGetDatum(DatumGetTextPCopy(PointerGetDatum(key->owner))));
}

/* rk_apikeys.current_key_family() -> text; NULL without a good principal. */
Datum
rk_apikeys_current_key_family(PG_FUNCTION_ARGS)
{
	const StoredKey *key = session_principal();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(key->family));
}

/* rk_apikeys.current_scopes() -> text[]; NULL without a good principal. */
Datum
rk_apikeys_current_scopes(PG_FUNCTION_ARGS)
{
	const StoredKey *key = session_principal();

	if (key == NULL)
		PG_RETURN_NULL();
	PG_RETURN_ARRAYTYPE_P(DatumGetArrayTypePCopy(PointerGetDatum(key->scopes)));
}

/*
 * rk_apikeys.has_scope(scope text) -> boolean
 *
 * Return whether the principal has all scopes of a list; false without a good
 * principal, and for what is no list.
 */
Datum
rk_apikeys_has_scope(PG_FUNCTION_ARGS)
{
	const StoredKey *key;
	text	   *list;

	if (PG_ARGISNULL(0) ||
		toast_raw_datum_size(PG_GETARG_DATUM(0)) - VARHDRSZ > GRANT_SCOPES_MAX_LEN)
		PG_RETURN_BOOL(false);
	list = PG_GETARG_TEXT_PP(0);
	key = session_principal();
	PG_RETURN_BOOL(key != NULL && grant_is_list(list) &&
				   grant_scopes(key->scopes, list));
}

/* rk_apikeys._may_manage() -> boolean: session_may_manage(). */
Datum
rk_apikeys_may_manage(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(session_may_manage());
}

/*
 * rk_apikeys._no_principal() -> boolean
 *
 * Return whether no principal is set.  The function does not look at the key: a
 * key that dies while a statement runs must not open the other tenants' rows to
 * the rest of the statement.
 */
Datum
rk_apikeys_no_principal(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!principal_is_set());
}

/* rk_apikeys._principal_environment() -> text: session_environment(). */
Datum
rk_apikeys_principal_environment(PG_FUNCTION_ARGS)
{
	char	   *environment = session_environment();

	if (environment == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(environment));
}
