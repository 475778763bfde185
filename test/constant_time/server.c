/*
 * server.c
 *		What making a digest touches of a server: the resource owner and the
 *		memory context that it belongs to, and the state of PG_TRY.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/resowner.h"

ResourceOwner CurrentResourceOwner = NULL;
MemoryContext CurrentMemoryContext = NULL;
MemoryContext TopMemoryContext = NULL;
sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;

ResourceOwner
ResourceOwnerCreate(ResourceOwner parent, const char *name)
{
	return NULL;
}
