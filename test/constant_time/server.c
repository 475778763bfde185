/*
 * server.c
 *		What making a digest touches of a server: the resource owner that its
 *		context belongs to, and the state of PG_TRY.
 */
#include "postgres.h"

#include "utils/resowner.h"

ResourceOwner CurrentResourceOwner = NULL;
sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;

ResourceOwner
ResourceOwnerCreate(ResourceOwner parent, const char *name)
{
	return NULL;
}
