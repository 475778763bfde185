/*
 * foreign.c
 *		A module of somebody else, whose functions and variables have our names.
 *
 * test/t/036_foreign_symbols.pl adds a file with those functions and variables.
 * Each function returns what foreign_called() returns.  Each byte of a variable
 * is FOREIGN_BYTE.
 */
#include "postgres.h"

#include <dlfcn.h>

#include "fmgr.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

extern long foreign_called(const char *name);

/* Log that one of the functions was called, and return 0: no, none, false. */
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

/*
 * foreign_touched(symbol text, size integer) -> boolean
 *
 * Return whether a variable of this library has another value than at first.
 */
PG_FUNCTION_INFO_V1(foreign_touched);
Datum
foreign_touched(PG_FUNCTION_ARGS)
{
	const char *bytes = dlsym(RTLD_DEFAULT,
							  text_to_cstring(PG_GETARG_TEXT_PP(0)));

	for (int i = 0; i < PG_GETARG_INT32(1); i++)
		if (bytes[i] != FOREIGN_BYTE)
			PG_RETURN_BOOL(true);
	PG_RETURN_BOOL(false);
}
