/*
 * caller.c
 *		Who is calling, and the few writes made for him with the owner's rights.
 *
 * Trust: caller_run_as_owner() is the only place in the extension where rights
 * are raised.  It is called for the audit rows, for the usage rows that a verify
 * without shared memory, a flush or the deletion of a key writes, for
 * revoke_token (which has proved the token), for the functions whose EXECUTE is
 * rk_apikeys_admin's alone, and for receive_usage, which a sender's role may be
 * granted.  While it runs, caller_role() and caller_tenant() still answer for who
 * called it.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class_d.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "caller.h"
#include "compat.h"
#include "principal.h"
#include "rk_apikeys.h"
#include "token.h"

/* The caller that caller_run_as_owner saved; InvalidOid outside of it. */
static Oid	saved_role = InvalidOid;

PG_FUNCTION_INFO_V1(rk_apikeys_current_tenant);

/*
 * The role that is calling: the current one, except under
 * caller_run_as_owner, where it is the one that was current before.
 */
Oid
caller_role(void)
{
	return OidIsValid(saved_role) ? saved_role : GetUserId();
}

/* The client's application_name, with a token in it masked.  Palloc'd. */
char *
caller_application_name(void)
{
	char	   *name = pstrdup(application_name);

	token_redact_kept(name, strlen(name));
	return name;
}

/*
 * The tenant whose keys the caller manages: the principal's, NULL if it has
 * died; without one the setting, or else the caller's name.  Palloc'd.
 */
char *
caller_tenant(void)
{
	if (principal_is_set())
	{
		const StoredKey *key = principal_key();

		return key == NULL ? NULL : text_to_cstring(key->tenant);
	}
	if (rk_apikeys_tenant[0] != '\0')
		return pstrdup(rk_apikeys_tenant);
	return GetUserNameFromId(caller_role(), false);
}

/* A hash of a tenant, for comparing without a copy. */
uint64
caller_tenant_hash(const char *tenant)
{
	return hash_any_extended((const unsigned char *) tenant, strlen(tenant), 0);
}

/*
 * Whether the caller has a role that reads every tenant's keys.  A key that
 * has authenticated sees its own tenant's, whatever the role.
 */
bool
caller_sees_all_tenants(void)
{
	static const char *const roles[] = {"rk_apikeys_admin", "rk_apikeys_auditor"};

	if (principal_is_set())
		return false;
	for (int i = 0; i < (int) lengthof(roles); i++)
	{
		Oid			role = get_role_oid(roles[i], true);

		if (OidIsValid(role) && has_privs_of_role(caller_role(), role))
			return true;
	}
	return false;
}

/*
 * Whether the current role is the table's owner by its own right: a superuser
 * or a member of the owner, but not a caller who is only borrowing the rights
 * of the owner in caller_run_as_owner.
 */
bool
caller_owns(Oid table)
{
	return !OidIsValid(saved_role) &&
		object_ownercheck(RelationRelationId, table, GetUserId());
}

/* Whether this runs in caller_run_as_owner. */
bool
caller_borrows(void)
{
	return OidIsValid(saved_role);
}

/*
 * Run work(arg) as the owner of the table, with row-level security off for
 * him and with a search_path that holds only pg_catalog.  On return, and on an
 * error, the caller's role, search_path and identity are as before.  Nested
 * calls keep the outermost caller.
 */
void
caller_run_as_owner(Oid table, OwnerWork work, void *arg)
{
	Oid			userid;
	int			context;
	int			nestlevel;
	Oid			before = saved_role;
	Relation	rel = table_open(table, AccessShareLock);
	Oid			owner = rel->rd_rel->relowner;

	table_close(rel, NoLock);

	GetUserIdAndSecContext(&userid, &context);
	nestlevel = NewGUCNestLevel();
	PG_TRY();
	{
		if (!OidIsValid(saved_role))
			saved_role = userid;
		SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_NOFORCE_RLS);
		(void) set_config_option("search_path", "pg_catalog, pg_temp",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		work(arg);
	}
	PG_FINALLY();
	{
		saved_role = before;
		SetUserIdAndSecContext(userid, context);
	}
	PG_END_TRY();
	/* After an error the transaction's abort does this. */
	AtEOXact_GUC(true, nestlevel);
}

/*
 * rk_apikeys.current_tenant() → text
 *
 * The tenant whose keys this session manages; NULL while a principal is set
 * that has died.  Our own tables' policies
 * compare with it; policies of other tables must not (it can be set).
 */
Datum
rk_apikeys_current_tenant(PG_FUNCTION_ARGS)
{
	char	   *tenant = caller_tenant();

	if (tenant == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(tenant));
}
