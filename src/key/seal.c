/*
 * seal.c
 *		Seal a secret for the owner of an OpenPGP key, by pgcrypto.
 *
 * The extension pgcrypto is looked for at each call.  A dependency on pgcrypto
 * would let its owner, or the owner of its schema, drop our extension.
 *
 * Trust: the owner of pgcrypto need not be a superuser, and may add functions
 * to it.  Only a superuser can make a function in C, so no other one is called.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/pg_language_d.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type_d.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "utils/acl.h"
#include "utils/catcache.h"
#include "utils/syscache.h"

#include "compat.h"

static Oid	find_function(Oid extension, const char *name, int nargs,
						  const Oid *args, Oid result);
pg_noreturn static void no_pgcrypto(void);

PG_FUNCTION_INFO_V1(rk_apikeys_seal);

/*
 * rk_apikeys.seal(secret text, pgp_public_key text) -> text
 *
 * Return the secret as an armoured OpenPGP message.  Raise 55000 if the
 * database has no pgcrypto, 42501 if the caller may not execute its functions,
 * and pgcrypto's errors for an invalid key.
 */
Datum
rk_apikeys_seal(PG_FUNCTION_ARGS)
{
	Oid			extension = get_extension_oid("pgcrypto", true);
	Oid			dearmor;
	Oid			encrypt;
	Oid			armor;
	Datum		key;
	Datum		message;

	if (!OidIsValid(extension))
		no_pgcrypto();
	dearmor = find_function(extension, "dearmor",
							1, (Oid[]) {TEXTOID}, BYTEAOID);
	encrypt = find_function(extension, "pgp_pub_encrypt",
							2, (Oid[]) {TEXTOID, BYTEAOID}, BYTEAOID);
	armor = find_function(extension, "armor",
						  1, (Oid[]) {BYTEAOID}, TEXTOID);
	key = OidFunctionCall1(dearmor, PG_GETARG_DATUM(1));
	message = OidFunctionCall2(encrypt, PG_GETARG_DATUM(0), key);
	PG_RETURN_DATUM(OidFunctionCall1(armor, message));
}

/*
 * Return the extension's C function of that name, arguments and result.  Raise
 * 55000 if there is none, and 42501 if the caller may not execute it.
 */
static Oid
find_function(Oid extension, const char *name, int nargs, const Oid *args,
			  Oid result)
{
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP,
										   CStringGetDatum(name));
	Oid			function = InvalidOid;
	AclResult	allowed;
	int			i;

	for (i = 0; i < list->n_members && !OidIsValid(function); i++)
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (proc->prolang == ClanguageId && proc->prorettype == result &&
			!proc->proretset && proc->pronargs == nargs &&
			memcmp(proc->proargtypes.values, args, nargs * sizeof(Oid)) == 0 &&
			getExtensionOfObject(ProcedureRelationId, proc->oid) == extension)
			function = proc->oid;
	}
	ReleaseSysCacheList(list);
	if (!OidIsValid(function))
		no_pgcrypto();
	allowed = object_aclcheck(ProcedureRelationId, function, GetUserId(),
							  ACL_EXECUTE);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_FUNCTION, name);
	return function;
}

static void
no_pgcrypto(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("seal() needs the extension \"pgcrypto\" in this database"),
			 errhint("Run CREATE EXTENSION pgcrypto.")));
}
