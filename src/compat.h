/*
 * compat.h
 *		Every difference between PostgreSQL versions; the only #if on them.
 *
 * Each gives the new name to an old server, so that callers read as today's
 * PostgreSQL.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include "postgres.h"

#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"

/* 16: the macros on varlena have a header of their own. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 17: numbers of processes replace those of backends. */
#if PG_VERSION_NUM < 170000
#include "storage/backendid.h"
#endif

#if PG_VERSION_NUM < 150000
#error "rk_apikeys needs PostgreSQL 15 or later"
#endif

/*
 * 16: one object_ownercheck for all classes.  Here it is asked for tables only.
 */
#if PG_VERSION_NUM < 160000
static inline bool
object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	Assert(classid == RelationRelationId);
	return pg_class_ownercheck(objectid, roleid);
}
#endif

/* 16: a relation's file is named by its locator. */
#if PG_VERSION_NUM < 160000
#include "storage/relfilenode.h"
#define RelFileLocator RelFileNode
#define rd_locator rd_node
#else
#include "storage/relfilelocator.h"
#endif

/* 18: an index scan can be told where to count. */
#if PG_VERSION_NUM >= 180000
#define index_beginscan(heap, index, snapshot, nkeys, norderbys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, norderbys)
#endif

/* 18: whether a plan is run once is no longer said. */
#if PG_VERSION_NUM < 180000
#define COMPAT_RUN_PARAMS uint64 count, bool execute_once
#define COMPAT_RUN_ARGS count, execute_once
#else
#define COMPAT_RUN_PARAMS uint64 count
#define COMPAT_RUN_ARGS count
#endif

/* 18: a function that does not return says so in front. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* 18: base64 is decoded into uint8. */
#if PG_VERSION_NUM < 180000
#define compat_b64_decode(src, len, dst, dstlen) \
	pg_b64_decode(src, len, (char *) (dst), dstlen)
#else
#define compat_b64_decode(src, len, dst, dstlen) \
	pg_b64_decode(src, len, dst, dstlen)
#endif

/* 16: a setting can refuse RESET. */
#if PG_VERSION_NUM < 160000
#define COMPAT_GUC_NO_RESET 0
#else
#define COMPAT_GUC_NO_RESET GUC_NO_RESET
#endif

/*
 * 17: shared memory can be had by name at any time.  Before there is none but
 * what a preloaded library asks for.
 */
#if PG_VERSION_NUM < 170000
#define COMPAT_NAMED_DSM false
static inline void *
GetNamedDSMSegment(const char *name, size_t size,
				   void (*init_callback) (void *ptr), bool *found)
{
	return NULL;
}
#else
#define COMPAT_NAMED_DSM true
#include "storage/dsm_registry.h"
#endif

/* 18: a library can tell its name and version. */
#if PG_VERSION_NUM < 180000
#define PG_MODULE_MAGIC_EXT(...) PG_MODULE_MAGIC
#endif

/* 17: a backend's number counts from 0 and has another name. */
#if PG_VERSION_NUM < 170000
#define COMPAT_BACKEND_NUMBER (MyBackendId > 0 ? MyBackendId : 0)
#else
#define COMPAT_BACKEND_NUMBER (MyProcNumber >= 0 ? MyProcNumber + 1 : 0)
#endif
/* Numbers that can be; auxiliary processes verify nothing. */
#define COMPAT_BACKENDS MaxBackends

/*
 * Minors of 2026 declare timingsafe_bcmp, and bring it where the C library has
 * none; older ones do neither.
 */
#ifndef HAVE_DECL_TIMINGSAFE_BCMP
static inline int
rk_apikeys_timingsafe_bcmp(const void *b1, const void *b2, size_t n)
{
	const volatile unsigned char *p1 = b1;
	const volatile unsigned char *p2 = b2;
	unsigned char difference = 0;

	for (; n > 0; n--)
		difference |= *p1++ ^ *p2++;
	return difference != 0;
}
#define timingsafe_bcmp rk_apikeys_timingsafe_bcmp
#endif

#endif
