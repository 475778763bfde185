/*
 * foreign.c
 *		A module of somebody else, in which functions have the names of ours.
 *
 * test/t/036_foreign_symbols.pl adds a file with those functions and variables.
 * Each function calls foreign_called(), which logs the name and returns 0.
 */
#include "postgres.h"

#include <dlfcn.h>

#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

extern long foreign_called(const char *name);

long
foreign_called(const char *name)
{
	ereport(LOG, (errmsg("foreign function called: %s", name)));
	return 0;
}

/*
 * foreign_answers(symbol text) -> boolean
 *
 * Return whether the server finds a global symbol in this library first.
 */
PG_FUNCTION_INFO_V1(foreign_answers);
Datum
foreign_answers(PG_FUNCTION_ARGS)
{
	void	   *address = dlsym(RTLD_DEFAULT,
								text_to_cstring(PG_GETARG_TEXT_PP(0)));
	Dl_info		found;
	Dl_info		own;

	PG_RETURN_BOOL(address != NULL && dladdr(address, &found) != 0 &&
				   dladdr((void *) foreign_called, &own) != 0 &&
				   found.dli_fbase == own.dli_fbase);
}
