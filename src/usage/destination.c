/*
 * destination.c
 *		Which server writes the use of this database's keys.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_subscription_rel.h"
#include "utils/fmgroids.h"

#include "base/settings.h"
#include "compat.h"
#include "usage/shared.h"

static bool is_subscribed(Oid table);

/*
 * Return whether another server writes the use of this database's keys: this
 * server is a standby, or has its keys by logical replication, and
 * primary_conninfo says where to send the use.  Runs in a transaction.
 */
bool
usage_goes_to_primary(void)
{
	Oid			table;

	if (settings_primary_conninfo[0] == '\0')
		return false;
	if (RecoveryInProgress())
		return true;
	table = store_table("api_keys", true);
	return OidIsValid(table) && is_subscribed(table);
}

/*
 * Return whether no server writes the use, because this server is a standby
 * without a primary_conninfo.
 */
bool
usage_is_discarded(void)
{
	return RecoveryInProgress() && settings_primary_conninfo[0] == '\0';
}

static bool
is_subscribed(Oid table)
{
	Relation	rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, Anum_pg_subscription_rel_srrelid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(table));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}
