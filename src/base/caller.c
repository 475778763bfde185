/*
 * caller.c
 *		Who is calling, and the few writes made with the owner's rights.
 *
 * Trust: caller_run_as_owner() is the only place in the extension that raises
 * rights.  Its callers write events, usage rows, revocations by token, and the
 * rows of functions that only rk_apikeys_admin or a sender's role may execute.
 * Two only read: the pepper ids of keys, and the row of a replaced key.
 * doc/architecture.md lists each caller with its reason.  While the function
 * runs, caller_role() still returns the role that called.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class_d.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "base/caller.h"
#include "base/settings.h"
#include "compat.h"
#include "token/token.h"

/* The caller that caller_run_as_owner() saved; InvalidOid outside of it. */
static Oid	saved_role = InvalidOid;

/*
 * Return the role that is calling: the current role, or, inside
 * caller_run_as_owner(), the role that was current before.
 */
Oid
caller_role(void)
{
	return OidIsValid(saved_role) ? saved_role : GetUserId();
}

/* Return the client's application_name, palloc'd, with tokens masked. */
char *
caller_application_name(void)
{
	char	   *name = pstrdup(application_name);

	token_redact_kept(name, strlen(name));
	return name;
}

/*
 * Return the setting rk_apikeys.end_user, with tokens masked; NULL if it is
 * empty.  Raise 22023 if the value that the session began with is not valid.
 */
const char *
caller_end_user(void)
{
	if (settings_end_user[0] == '\0')
		return NULL;
	if (!settings_end_user_ok(settings_end_user))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"rk_apikeys.end_user\""),
				 errhint("Use at most %d characters of the database's encoding.",
						 SETTINGS_END_USER_MAX_CHARS)));
	return settings_end_user;
}

/*
 * Return whether the current role owns the table in its own right: it is a
 * superuser or a member of the owner.  A caller inside caller_run_as_owner()
 * only borrows the owner's rights and does not count.
 */
bool
caller_owns(Oid table)
{
	return !OidIsValid(saved_role) &&
		object_ownercheck(RelationRelationId, table, GetUserId());
}

/* Return whether caller_run_as_owner() is running. */
bool
caller_borrows(void)
{
	return OidIsValid(saved_role);
}

/*
 * Run work(arg) as the owner of the table, without forced row-level security
 * and with a search_path of pg_catalog alone.  Intervals are written in
 * PostgreSQL's own style, because events keep them as text.  On return and on
 * an error the caller's role, settings and identity are as before.  Nested calls
 * keep the outermost caller.
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
		(void) set_config_option("IntervalStyle", "postgres",
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
